"""How many tokens a model reads at once, and the refusal of settings that go beyond it.

Beyond it a model with learnt positions fails in the middle of a run, and one with rotary positions
(RoPE) goes on and silently answers worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlhf_api.run import StageRun
from rlhf_api.stages import AnyStage, PPOStage

from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH_FIELDS: Final = ("max_position_embeddings", "max_seq_len", "seq_length")


class Asked(NamedTuple):
    """A length that the manifest asks for."""

    field: str  # its place in the manifest
    tokens: int
    detail: str  # how it adds up, where it is a sum


def context_length(config: Any) -> int | None:
    """Tokens that a model reads at once; None: no limit is known (ALiBi, state-space models).

    Scaled rotary positions count as scaled: linear, dynamic and YaRN scaling leave
    `max_position_embeddings` as it was.
    """
    config = config.get_text_config()
    if _uses_alibi(config):
        return None
    found = (getattr(config, name, None) for name in LENGTH_FIELDS)
    limit = next((int(value) for value in found if isinstance(value, int)), None)
    return None if limit is None else max(limit, *_scaled(config, limit))


def refuse_beyond_context(run: StageRun) -> None:
    """Raise ConfigurationError with every length that is too long for its model, all at once."""
    wrong = [
        line for name, stage in run.stages.present().items() for line in _wrong(run, name, stage)
    ]
    if run.evaluation is not None:
        longest = _limit(_policy(run))
        tokens = run.evaluation.max_new_tokens
        if longest is not None and tokens >= longest:
            wrong.append(
                f"spec.evaluation.maxNewTokens: {tokens} leaves no room for a prompt: "
                f"{run.model.source} reads {longest} tokens at most; set a lower number"
            )
    if wrong:
        raise ConfigurationError("\n".join(wrong))


def vocabulary(path: Path) -> int | None:
    """Tokens that the model in a folder has an embedding of; None where its config names none."""
    from rlhf_trainer.models.language_models import model_config

    return getattr(model_config(path).get_text_config(), "vocab_size", None)


def refuse_unknown_tokens(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> None:
    """ConfigurationError where the chat template writes tokens that the model has no embedding of.

    Those that no dialogue holds may be more: Gemma 3's tokenizer has one for its images.
    """
    rows, written = vocabulary(_policy(run)), end_token_ids(tokenizer)
    if rows is None or max(written) < rows:
        return
    token = tokenizer.convert_ids_to_tokens(max(written))
    raise ConfigurationError(
        f"the chat template ends a turn with {token}, which is token {max(written)}, and "
        f"{run.model.source} has embeddings of {rows} tokens alone; use the tokenizer that belongs "
        "to the model (spec.model.tokenizer), or a chat template of its tokens"
    )


def _wrong(run: StageRun, name: str, stage: AnyStage) -> Iterator[str]:
    asked = _asked(name, stage)
    for model, path in _readers(run, stage):
        limit = _limit(path)
        if limit is not None and asked.tokens > limit:
            yield (
                f"{asked.field}: {asked.tokens} tokens{asked.detail}, and {model} reads {limit} at "
                f"most, by its config.json; set {limit} or less, or use a model that reads more"
            )


def _asked(name: str, stage: AnyStage) -> Asked:
    """The longest row that a model of the stage is given."""
    if isinstance(stage, PPOStage):
        rollout = stage.rollout
        parts = rollout.max_prompt_length, rollout.max_new_tokens
        detail = f" (maxPromptLength {parts[0]} + maxNewTokens {parts[1]})"
        return Asked(f"spec.stages.{name}.rollout", sum(parts), detail)
    return Asked(f"spec.stages.{name}.maxLength", stage.max_length, "")


def _readers(run: StageRun, stage: AnyStage) -> Iterator[tuple[str, Path]]:
    """Who reads the stage's rows: the policy, and the reward models that read the same tokens.

    A reward model that the user names may count in tokens of its own: what it is given is measured
    when it is given.
    """
    yield run.model.source, _policy(run)
    if isinstance(stage, PPOStage) and "reward" in run.inputs:
        yield "the reward model", Path(run.inputs["reward"].path)


def _policy(run: StageRun) -> Path:
    """What the stage starts from; of an adapter, the model it belongs to."""
    for role in ("policy", "base"):
        if role in run.inputs and (Path(run.inputs[role].path) / "config.json").is_file():
            return Path(run.inputs[role].path)
    return Path(run.paths.get(run.model.source, run.model.source))


def _limit(path: Path) -> int | None:
    from rlhf_trainer.models.language_models import model_config

    return context_length(model_config(path))


def _uses_alibi(config: Any) -> bool:
    return any(
        getattr(part, "alibi", False) for part in (config, getattr(config, "attn_config", None))
    )


def _scaled(config: Any, limit: int) -> Iterator[int]:
    """The length that rotary scaling reaches, for each kind of layer."""
    yield limit
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for kind in kinds:
        factor, original = kind.get("factor"), kind.get("original_max_position_embeddings")
        if isinstance(factor, int | float):
            yield int(factor * (original or limit))
