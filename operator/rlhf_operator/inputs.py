"""The hashes that say whether a stage has to run.

The *input hash* covers what can change a stage's result. The *settings* digest covers, beyond it,
what one attempt was started with (nodes, storage, deadline): when only that differs, the attempt
is replaced by one that goes on from the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from rlhf_api.base import OPERATIONAL, Contract, digest, identity
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.job import JobSpec, RLHFJob
from rlhf_api.resources import Resources
from rlhf_api.run import PREPARE, Demonstrations
from rlhf_api.sources import named_sources
from rlhf_api.stages import PPOStage
from rlhf_api.stages.ppo import FunctionReward

from rlhf_operator.known_specs import REMEMBERED
from rlhf_operator.names import ANNOTATION_REFRESH, claim_name

CHECKED_FIELDS: Final = ("max_length", "loss", "packing", "train_on", "command")
"""Settings of a stage that decide which rows `prepare` can accept."""

STARTED_WITH: Final = (
    "image",
    "image_pull_policy",
    "image_pull_secrets",
    "env",
    "secrets",
    "scheduling",
)
"""Fields of the spec that each of its pods is started with."""

KEPT_BY_PREPARE: Final = ("service_account", "tolerations", "priority_class")
"""Fields of the job's resources that hold for `prepare`, too."""

ADDRESSES: Final = ("source", "revision", "tokenizer", "evalSource")
"""Fields of a source that say where it is, and not what."""

Pairs = tuple[tuple[str, str], ...]


class Wanted(NamedTuple):
    """What an attempt has to be working on to be of use now."""

    hash: str
    settings: str


class _Spec:
    """One very spec, as a key of what is remembered of it: of itself it has no hash."""

    def __init__(self, job: RLHFJob) -> None:
        self.itself = job.spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Spec) and self.itself is other.itself

    def __hash__(self) -> int:
        return id(self.itself)


def demonstrations(spec: JobSpec, stage: str) -> Demonstrations | None:
    """The SFT data, for the stage that reads them as well: reward, where it normalises on them."""
    return Demonstrations.of(spec.stages) if stage == "reward" else None


def prepare_hash(job: RLHFJob, fingerprints: Mapping[str, str]) -> str:
    """Hash of what `prepare` reads and checks.

    `fingerprints` tell apart two states of a local file: a changed file is prepared anew, which
    gives a new digest, which makes the stages that read it run again.
    """
    return _prepare_hash(
        _Spec(job), tuple(fingerprints.items()), annotation(job, ANNOTATION_REFRESH)
    )


@lru_cache(maxsize=REMEMBERED)
def _prepare_hash(of: _Spec, fingerprints: Pairs, refresh: str | None) -> str:
    spec = of.itself
    wanted = Demonstrations.of(spec.stages)
    return digest(
        {
            "image": spec.image,
            "sources": {ref.field: identity(ref.value) for ref in named_sources(spec)},
            "checks": {name: _checks(stage) for name, stage in spec.stages.present().items()},
            **({"demonstrations": wanted.max_length} if wanted else {}),
            "files": dict(fingerprints),
            "refresh": refresh,
        }
    )


def _checks(stage: Contract) -> dict[str, Any]:
    checks = {name: getattr(stage, name, None) for name in CHECKED_FIELDS}
    if isinstance(stage, PPOStage):
        checks["max_prompt_length"] = stage.rollout.max_prompt_length
    return checks


def input_hash(
    job: RLHFJob, stage: str, sources: Mapping[str, str], outputs: Mapping[str, str]
) -> str:
    """Hash of what can change a stage's result.

    `sources`: content digest by field of the spec, as `prepare` saw it. `outputs`: manifest digest
    of each parent stage's output.
    """
    return _input_hash(_Spec(job), stage, tuple(sources.items()), tuple(outputs.items()))


@lru_cache(maxsize=REMEMBERED)
def _input_hash(of: _Spec, stage: str, known: Pairs, outputs_of: Pairs) -> str:
    spec, sources, outputs = of.itself, dict(known), dict(outputs_of)
    config = spec.stages.present()[stage]
    data, taken = demonstrations(spec, stage), spec.stages.parents(stage)
    return digest(
        {
            "stage": stage,
            "seed": spec.seed,
            "image": config.image or spec.image,
            "model": _meaning(spec.model, "model", sources),
            "config": _meaning(config, f"stages.{stage}", sources),
            "inputs": {role: outputs[parent] for role, parent in taken.items()},
            **({"demonstrations": _meaning(data, "stages.sft", sources)} if data else {}),
        }
    )


def _meaning(value: object, field: str, sources: Mapping[str, str]) -> Any:
    """`identity`, with a source's content in place of its address where the content is known."""
    if isinstance(value, ModelSource | DataSource | FunctionReward):
        return _source_meaning(identity(value), field, sources)
    if isinstance(value, Contract):
        return {
            (key := info.alias or name): _meaning(getattr(value, name), f"{field}.{key}", sources)
            for name, info in type(value).model_fields.items()
            if OPERATIONAL not in info.metadata and getattr(value, name) is not None
        }
    if isinstance(value, dict):
        return {key: _meaning(item, f"{field}.{key}", sources) for key, item in value.items()}
    return identity(value)


def _source_meaning(
    plain: dict[str, Any], field: str, sources: Mapping[str, str]
) -> dict[str, Any]:
    """A digest covers all that a field names: model and tokenizer, data and held-out data."""
    if field not in sources:
        return plain
    return {k: v for k, v in plain.items() if k not in ADDRESSES} | {"digest": sources[field]}


def settings(job: RLHFJob, stage: str, wanted_hash: str) -> str:
    """Digest of all that an attempt is started with, of what its user wrote.

    Gates and retry budgets are read live by the plan, so a change of theirs replaces no attempt;
    nor does a change of the cluster's own defaults.
    """
    return _settings(_Spec(job), stage, wanted_hash, claim_name(job))


@lru_cache(maxsize=REMEMBERED)
def _settings(of: _Spec, stage: str, wanted_hash: str, claim: str) -> str:
    spec, checkpoints = of.itself, of.itself.checkpoints
    common = {
        "hash": wanted_hash,
        **{name: getattr(spec, name) for name in STARTED_WITH},
        "checkpoints": [claim, checkpoints.uri, checkpoints.secret, checkpoints.sub_path],
    }
    if stage == PREPARE:
        return digest(common | {"prepare": _prepare_settings(spec)})
    return digest(common | _stage_settings(spec, stage))


def _prepare_settings(spec: JobSpec) -> dict[str, Any]:
    secrets = {ref.field: getattr(ref.value, "secret", None) for ref in named_sources(spec)}
    return {**prepare_resources(spec).to_dict(), "secrets": secrets}


def prepare_resources(spec: JobSpec) -> Resources:
    """What `prepare` asks for: no devices, and so not the nodes that have them."""
    kept = {name: getattr(spec.resources, name) for name in KEPT_BY_PREPARE}
    return Resources(nodes=1, gpus_per_node=0, shm_size="1Gi").model_copy(update=kept)


def _stage_settings(spec: JobSpec, stage: str) -> dict[str, Any]:
    config = spec.stages.present()[stage]
    written, data = config.to_dict(), demonstrations(spec, stage)
    return {
        "config": {k: v for k, v in written.items() if k not in ("gate", "retry", "resources")},
        "deadline": config.retry.deadline_seconds,
        "resources": spec.resources_of(stage).to_dict(),
        "evaluation": spec.evaluation.to_dict() if spec.evaluation else None,
        **({"demonstrations": data.to_dict()} if data else {}),
    }


def annotation(job: RLHFJob, key: str) -> str | None:
    """An annotation of the RLHFJob, as a user or a tool set it."""
    return (job.metadata.annotations or {}).get(key)
