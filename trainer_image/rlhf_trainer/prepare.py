"""Prepare: fetch, pin and check every model and data set, before a stage asks for GPUs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from rlhf_api.data import DataSource, ModelSource
from rlhf_api.run import Demonstrations, ExitCode, StageResult, StageRun
from rlhf_api.sources import SourceRef, uris
from rlhf_api.stages import AnyStage, DPOStage, PPOStage, RewardStage, SFTStage
from rlhf_api.stages.ppo import FunctionReward

from rlhf_trainer.checkpoints.disk import (
    bring_source,
    bring_spare,
    keep_source,
    keep_spare,
    name_of,
    open_store,
)
from rlhf_trainer.checkpoints.store import ObjectStore
from rlhf_trainer.data.digests import path_of, source_digest, sources_of
from rlhf_trainer.data.encode import largest_token
from rlhf_trainer.data.fetched import fetch_data, fetch_model, is_remote, revision_of
from rlhf_trainer.data.kept import Kept, key_of
from rlhf_trainer.data.load import Loaded
from rlhf_trainer.data.stage_rows import (
    Recipe,
    demonstration_rows,
    evaluation_rows,
    labelled_rows,
    preference_rows,
    pretraining_rows,
    prompt_rows,
    sft_rows,
)
from rlhf_trainer.errors import BadData, ConfigurationError, shortened
from rlhf_trainer.installed import refuse_missing_for_stages
from rlhf_trainer.models.context import refuse_beyond_context, refuse_unknown_tokens, vocabulary
from rlhf_trainer.ppo.http_reward import unreachable
from rlhf_trainer.read_code import file_of, missing_imports, refuse_unusable

NAMED: Final = 4
"""Files that are not read, as many as a message names; the log has all."""

log = logging.getLogger(__name__)


def prepare(run: StageRun) -> StageResult:
    """Fetch what is remote, check every row of every stage as the stage itself will, take digests.

    Raises BadData with all that is wrong in all data sets, ConfigurationError for the rest.
    """
    refuse_missing_for_stages(run)
    refs = list(sources_of(run))
    _refuse_two_revisions(refs)
    store = _writable_store(run)
    for ref in refs:
        _fetch(ref, run, store)
    for ref in refs:
        _check_files(ref, run)
    told = _check_code(refs, run)
    refuse_beyond_context(run)
    _check_reward_model(run)
    digests = {ref.field: source_digest(ref, run.paths) for ref in refs}
    tokenizer = _tokenizer(run)
    told += _check_rewards(run, tokenizer)
    counts, warnings = _check_rows(run, digests, store, tokenizer)
    checked = f"checked {len(refs)} sources: {', '.join(counts)}"
    return StageResult(
        exit_code=ExitCode.DONE,
        reason="Done",
        message=shortened("\n".join([checked, *told, *warnings])),
        sources=digests,
    )


def _refuse_two_revisions(refs: list[SourceRef]) -> None:
    """One address has one place in the pod."""
    seen: dict[str, str | None] = {}
    for ref in refs:
        if isinstance(ref.value, FunctionReward):
            continue
        for uri in filter(is_remote, uris(ref.value)):
            revision = revision_of(ref.value, uri)
            if seen.setdefault(uri, revision) != revision:
                raise ConfigurationError(
                    f"spec.{ref.field}: {uri} is named with two revisions, {seen[uri]} and "
                    f"{revision}; use one"
                )


def _writable_store(run: StageRun) -> ObjectStore | None:
    """Refused credentials are found before a stage asks for GPUs."""
    store = open_store(run)
    if store is not None:
        probe = f"{name_of(Path(run.output))}/probe"
        store.write(probe, b"")
        store.remove([probe])
    return store


def _fetch(ref: SourceRef, run: StageRun, store: ObjectStore | None) -> None:
    for uri in filter(is_remote, uris(ref.value)):
        target = path_of(uri, run.paths)
        if store is not None:
            bring_source(store, target)
        _fetch_address(ref, uri, target)
        if store is not None:
            keep_source(store, target)


def _fetch_address(ref: SourceRef, uri: str, target: Path) -> None:
    if isinstance(ref.value, DataSource):
        fetch_data(ref.value, uri, target)
    elif isinstance(ref.value, ModelSource):
        fetch_model(ref.value, uri, target)
    else:
        raise ConfigurationError(f"spec.{ref.field}: code comes from a folder, not from {uri}")


def _check_files(ref: SourceRef, run: StageRun) -> None:
    """Whether what a source names is there, and looks like what it should be."""
    for uri in uris(ref.value):
        path = path_of(uri, run.paths)
        if not path.exists():
            raise ConfigurationError(f"spec.{ref.field}: {uri} is not there")
    path = path_of(ref.value.source, run.paths)
    if not isinstance(ref.value, DataSource) and not path.is_dir():
        raise ConfigurationError(f"spec.{ref.field}: {ref.value.source} is a file, not a folder")
    if isinstance(ref.value, ModelSource):
        _check_model(ref.value, path)
    elif isinstance(ref.value, FunctionReward):
        _check_function(ref, path)


def _check_model(source: ModelSource, path: Path) -> None:
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ConfigurationError(f"{source.source}: no model is here (config.json is missing)")
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    if source.init == "pretrained" and not weights:
        raise ConfigurationError(
            f"{source.source}: there are no weights (*.safetensors); `init: random` draws new ones"
        )
    if source.init == "pretrained":
        from rlhf_trainer.models.language_models import refuse_damaged_weights

        refuse_damaged_weights(path)


def _check_reward_model(run: StageRun) -> None:
    from rlhf_trainer.models.language_models import model_config
    from rlhf_trainer.models.scalar_models import refuse_without_classifier

    if run.stages.reward is not None and not run.stages.reward.command:
        refuse_without_classifier(model_config(path_of(run.model.source, run.paths)))


def _check_function(ref: SourceRef, path: Path) -> None:
    assert isinstance(ref.value, FunctionReward)
    module = ref.value.entrypoint.split(":")[0]
    if file_of(module, path) is None:
        raise ConfigurationError(
            f"spec.{ref.field}: {ref.value.source}: there is no {module.replace('.', '/')}.py for "
            f"{ref.value.entrypoint}"
        )


def _check_code(refs: Sequence[SourceRef], run: StageRun) -> list[str]:
    """Functions that cannot be loaded or called are refused; modules that they import and that are
    not installed are told of, as the function may bring them along."""
    told = []
    for ref in refs:
        if isinstance(ref.value, FunctionReward) and _runs_here(ref.field, run):
            folder = path_of(ref.value.source, run.paths)
            try:
                refuse_unusable(ref.value, folder)
            except ConfigurationError as error:
                raise ConfigurationError(f"spec.{ref.field}: {error}") from None
            if missing := missing_imports(ref.value, folder):
                names = ", ".join(missing)
                told.append(f"spec.{ref.field}: it imports {names}, not installed here")
    return told


def _runs_here(field: str, run: StageRun) -> bool:
    """Whether the code of a field is run in the image that runs this. A judge is run by every
    stage."""
    root, *rest = field.split(".")
    own = run.stages.present()
    stages = [own[rest[0]]] if root == "stages" else [*own.values()]
    return any(stage.image is None and not stage.command for stage in stages)


def _check_rewards(run: StageRun, tokenizer: Any) -> list[str]:
    """Reward models that cannot read the stage's answers are refused; endpoints that cannot be
    reached are told of: they may be up when they are asked."""
    from rlhf_trainer.ppo.reward_sources import refuse_unreadable

    told = []
    for name, stage in run.stages.present().items():
        if not isinstance(stage, PPOStage) or stage.command:
            continue
        for term_name, term in (stage.rewards or {}).items():
            where = f"spec.stages.{name}.rewards.{term_name}"
            if term.model is not None:
                try:
                    refuse_unreadable(run, stage, term, tokenizer)
                except ConfigurationError as error:
                    raise ConfigurationError(f"{where}.model: {error}") from None
            if term.http is not None and (reason := unreachable(term.http.url)):
                told.append(f"{where}.http: {term.http.url} cannot be reached now: {reason}")
    for warning in told:
        log.warning("%s", warning)
    return told


def _tokenizer(run: StageRun) -> Any:
    from rlhf_trainer.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(run)
    refuse_unknown_tokens(run, tokenizer)
    return tokenizer


def _check_rows(
    run: StageRun, digests: Mapping[str, str], store: ObjectStore | None, tokenizer: Any
) -> tuple[list[str], list[str]]:
    """What each data set holds, in words, and what is hardly meant so; BadData with the problems of
    all of them together."""
    counts: list[str] = []
    warnings: list[str] = []
    problems: list[str] = []
    known = vocabulary(path_of(run.model.source, run.paths))
    for field, recipe in _recipes(run).items():
        try:
            rows = _rows(run, field, recipe, digests[field], tokenizer, store)
            _refuse_unknown_tokens(rows, tokenizer, known)
            counts.append(f"{field} {len(rows.train)} + {len(rows.heldout)} rows")
            warnings += _warned(field, rows)
        except BadData as error:
            problems.append(f"spec.{field}: {error}")
    if problems:
        raise BadData("\n".join(problems))
    _keep_demonstrations(run, digests, tokenizer, store)
    return counts, warnings


def _rows(
    run: StageRun,
    field: str,
    recipe: Recipe[Any],
    digest: str,
    tokenizer: Any,
    store: ObjectStore | None,
) -> Loaded[Any]:
    """The rows of a data set, as the stage will read them, and kept for it."""
    if not field.startswith("stages."):  # of an evaluation the first few are read
        return recipe.rows(tokenizer, run.paths, run.seed)
    key = key_of(recipe, digest, tokenizer, run.seed)
    kept = Kept.of(run, field, recipe, tokenizer, key)
    if store is not None:
        bring_spare(store, kept.path)
    if kept.fill() and store is not None:
        keep_spare(store, kept.path)
    return kept.rows()


def _keep_demonstrations(
    run: StageRun, digests: Mapping[str, str], tokenizer: Any, store: ObjectStore | None
) -> None:
    """SFT can learn from rows of which none serves the reward stage, such as cut ones alone."""
    wanted, reward = Demonstrations.of(run.stages), run.stages.reward
    if wanted is None or reward is None or reward.command:
        return
    field, digest = "stages.reward.demonstrations", digests["stages.sft.data"]
    try:
        _rows(run, field, demonstration_rows(wanted), digest, tokenizer, store)
    except BadData as error:
        raise BadData(f"spec.stages.reward.normaliseOn: {error}") from None


def _warned(field: str, rows: Loaded[Any]) -> list[str]:
    """Rows that are left out, files beside them that are not read, and what is hardly meant as it
    is."""
    found = list(rows.warnings)
    if rows.skipped:
        what = "1 row is" if len(rows.skipped) == 1 else f"{len(rows.skipped)} rows are"
        found.append(f"{what} left out, the first: {rows.skipped[0]}")
    if rows.unread:
        found.append(f"not read, as no data of this split: {_first(rows.unread)}")
        log.info("spec.%s: all that is not read: %s", field, ", ".join(rows.unread))
    for warning in found:
        log.warning("spec.%s: %s", field, warning)
    return [f"spec.{field}: {warning}" for warning in found]


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


def _refuse_unknown_tokens(rows: Loaded[Any], tokenizer: Any, known: int | None) -> None:
    """A tokenizer of another model may know more tokens: training would end in an index error."""
    if known is None:
        return
    for row in chain(rows.train, rows.heldout):
        largest = largest_token(row)
        if largest >= known:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise BadData(
                f"{row.id}: the tokenizer gives token {largest} ({token!r}), and the model has "
                f"{known} tokens (vocab_size in its config.json): use the tokenizer that "
                "belongs to it"
            )


def _recipes(run: StageRun) -> dict[str, Recipe[Any]]:
    """How the rows of each data set are read, by field in the spec.

    What a stage with a command of its own reads is not ours to judge.
    """
    found: dict[str, Recipe[Any]] = {}
    for name, stage in run.stages.present().items():
        if stage.command:
            continue
        found[f"stages.{name}.data"] = _recipe_of(stage)
        if isinstance(stage, PPOStage) and stage.pretraining is not None:
            found[f"stages.{name}.pretraining.data"] = pretraining_rows(stage)
    if run.evaluation is not None:
        found["evaluation.prompts"] = evaluation_rows(run.evaluation)
    return found


def _recipe_of(stage: AnyStage) -> Recipe[Any]:
    match stage:
        case SFTStage():
            return sft_rows(stage)
        case RewardStage():
            return preference_rows(stage)
        case DPOStage():
            return labelled_rows(stage) if stage.loss == "kto" else preference_rows(stage)
        case PPOStage():
            return prompt_rows(stage)
