"""The stage file: the ConfigMap that tells an attempt all it needs to know."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import yaml
from rlhf_api.job import Evaluation, JobSpec, Stages
from rlhf_api.run import PREPARE, STAGE_FILE, Input, JobRef, StageRun
from rlhf_api.sources import SourceRef, named_sources
from rlhf_api.status import CheckpointRef

from rlhf_operator.inputs import demonstrations
from rlhf_operator.names import attempt_folder, lineage
from rlhf_operator.render.metadata import AttemptKey, Object, metadata
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.volumes import CHECKPOINTS, Placed
from rlhf_operator.storage import place_on_volume

FILE_NAME: Final = PurePosixPath(STAGE_FILE).name
AUTHORITY_NAME: Final = "progress-ca.crt"
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C where it can be
POLICY_STAGES: Final = ("sft", "ppo", "dpo")
"""Stages whose output answers prompts."""


def refs_of(spec: JobSpec, stage: str) -> list[SourceRef]:
    """The sources that a stage reads; `prepare` reads them all."""
    if stage == PREPARE:
        return list(named_sources(spec))
    evaluation, also_read = _evaluation(spec, stage), demonstrations(spec, stage)
    return [
        *named_sources(spec.model, "model"),
        *named_sources(spec.stages.present()[stage], f"stages.{stage}"),
        *(named_sources(also_read, "stages.sft") if also_read else ()),
        *(named_sources(evaluation, "evaluation") if evaluation else ()),
    ]


def _evaluation(spec: JobSpec, stage: str) -> Evaluation | None:
    return spec.evaluation if stage in (PREPARE, *POLICY_STAGES) else None


def stage_run(key: AttemptKey, placed: list[Placed]) -> StageRun:
    """The stage file of an attempt. The job's status has to name the outputs that it takes."""
    job, spec = key.job, key.job.spec
    status = job.status
    known = status.sources if status else {}
    fields = [ref.field for ref in refs_of(spec, key.stage)]
    return StageRun(
        job=JobRef(name=job.metadata.name, namespace=job.metadata.namespace, uid=job.metadata.uid),
        stage=key.stage,
        attempt=key.number,
        hash=key.hash,
        seed=spec.seed,
        model=spec.model,
        stages=_stages(spec, key.stage),
        inputs=_inputs(key, {item.address: item.path for item in placed}),
        paths={item.address: item.path for item in placed},
        sources={field: known[field] for field in fields if field in known},
        lineage=f"{CHECKPOINTS}/{lineage(job, key.stage, key.hash)}",
        output=f"{CHECKPOINTS}/{attempt_folder(job, key.stage, key.hash, key.number)}",
        store=spec.checkpoints.uri,
        store_secret=spec.checkpoints.secret,
        evaluation=_evaluation(spec, key.stage),
        demonstrations=demonstrations(spec, key.stage),
    )


def _stages(spec: JobSpec, stage: str) -> Stages:
    if stage == PREPARE:
        return spec.stages
    return Stages.model_validate({stage: spec.stages.present()[stage]})


def _inputs(key: AttemptKey, paths: dict[str, str]) -> dict[str, Input]:
    """Models by role: base, policy (what the stage starts from), reward."""
    spec = key.job.spec
    base = Input(path=paths[spec.model.source], init=spec.model.init)
    if key.stage == PREPARE:
        return {"base": base}
    outputs = {
        role: _output(key, parent_checkpoint(key, parent))
        for role, parent in spec.stages.parents(key.stage).items()
    }
    return {"base": base, "policy": _start(key, base), **outputs}


def _start(key: AttemptKey, base: Input) -> Input:
    """The base model, or its architecture with fresh weights, where no stage comes before."""
    reward = key.job.spec.stages.reward
    fresh = key.stage == "reward" and reward is not None and reward.start_from == "random"
    return base.model_copy(update={"init": "random"}) if fresh else base


def _output(key: AttemptKey, checkpoint: CheckpointRef) -> Input:
    path = f"{CHECKPOINTS}/{place_on_volume(key.job, checkpoint)}"
    return Input(path=path, digest=checkpoint.digest)


def parent_checkpoint(key: AttemptKey, parent: str) -> CheckpointRef:
    """The output that the parent's status shows. The plan starts no stage before it is there."""
    status = key.job.status.stages.get(parent) if key.job.status else None
    if status is None or status.checkpoint is None:
        raise ValueError(f"{key.stage} is rendered before {parent} has an output")
    return status.checkpoint


def config_map(key: AttemptKey, placed: list[Placed], platform: Platform) -> Object:
    """Immutable: an attempt reads the same settings in each of its pods, whenever they start."""
    authority = platform.progress_authority
    text = yaml.dump(
        stage_run(key, placed).to_dict(),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(key),
        "immutable": True,
        "data": {FILE_NAME: text} | ({AUTHORITY_NAME: authority} if authority else {}),
    }
