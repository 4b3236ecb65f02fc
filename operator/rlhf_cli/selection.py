"""Which pods `rlhfctl logs` shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import Failure
from rlhf_cli.targets.target import PodView


class Wish(NamedTuple):
    """What the user asked for; None: what is most telling."""

    stage: str | None = None
    attempt: int | None = None
    rank: int | None = None


def check(job: RLHFJob, wish: Wish) -> None:
    """Raises Failure where no pod could ever fit."""
    stages = job.stage_statuses()
    if wish.stage is not None and wish.stage not in stages:
        raise Failure(f"{job.metadata.name} has no stage {wish.stage}; it has {', '.join(stages)}")
    if wish.rank is not None:
        names = [wish.stage] if wish.stage else [name for name in stages if name != "prepare"]
        most = max(ranks(job, name) for name in names)
        if not 0 <= wish.rank < most:
            raise Failure(f"there is no rank {wish.rank}: ranks are 0 to {most - 1}")


def selected(job: RLHFJob, pods: Sequence[PodView], wish: Wish) -> list[PodView]:
    """The pods to show: of the stages under way, else of the one that was last begun."""
    stages = job.stage_statuses()
    if wish.stage:
        names = [wish.stage]
    else:
        names = [name for name, item in stages.items() if item.phase == "Running"]
        if not names:
            begun = {pod.stage for pod in pods}
            if stages["prepare"].phase == "Succeeded" and len(begun) > 1:
                begun.discard("prepare")  # done again before a run that trained nothing new
            # Times are whole seconds: of stages that began within one, the later in the order.
            started = [(stages[name].start_time or "", n, name) for n, name in enumerate(stages)]
            names = [name for _, _, name in sorted(started) if name in begun][-1:]
    return [pod for name in names for pod in _of_stage(job, pods, name, wish)]


def _of_stage(job: RLHFJob, pods: Sequence[PodView], stage: str, wish: Wish) -> list[PodView]:
    mine = [pod for pod in pods if pod.stage == stage]
    newest = max((pod.attempt for pod in mine), default=0)
    attempt = newest if wish.attempt is None else wish.attempt
    index = None if wish.rank is None else wish.rank // _ranks_of_a_pod(job, stage)
    return [pod for pod in mine if pod.attempt == attempt and index in (None, pod.completion_index)]


def first_rank(job: RLHFJob, pod: PodView) -> int:
    """The first of the ranks that run in a pod."""
    is_there = pod.stage in job.spec.stages.present()  # not where an edit has removed it
    return pod.completion_index * (_ranks_of_a_pod(job, pod.stage) if is_there else 1)


def _ranks_of_a_pod(job: RLHFJob, stage: str) -> int:
    return 1 if stage == "prepare" else job.spec.resources_of(stage).ranks_per_node


def ranks(job: RLHFJob, stage: str) -> int:
    """How many ranks a stage has in all."""
    nodes = 1 if stage == "prepare" else job.spec.resources_of(stage).nodes
    return nodes * _ranks_of_a_pod(job, stage)
