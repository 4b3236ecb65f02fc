"""What this machine has, and how a job for a cluster is fitted to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from rlhf_api.cpus import usable_cpus
from rlhf_api.job import RLHFJob, Stages
from rlhf_api.resources import ResourceOverrides, Resources

Asked = TypeVar("Asked", Resources, ResourceOverrides)


class Machine(NamedTuple):
    """Cores and GPUs that pods may use."""

    cpus: int
    gpus: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them


def this_machine() -> Machine:
    """The CPUs that this process may use, and the GPUs that are visible to it."""
    return Machine(usable_cpus(), _visible_gpus())


def _visible_gpus() -> tuple[str, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = _counted_gpus()
    if chosen is None or present == 0:
        return tuple(str(number) for number in range(present))
    return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1"))


def _counted_gpus() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        found = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0  # a driver that does not answer is as good as none
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


def fit_to_machine(job: RLHFJob, gpus: int, cpus: int) -> RLHFJob:
    """The job with one node a stage, and no more devices or processes than there are.

    Only operational fields change, so every input hash stays what it is on a cluster. Where there
    is no GPU at all, a stage for 8 GPUs runs as one process on the CPU.
    """
    spec = job.spec
    stages = {
        name: stage.model_copy(
            update={"resources": _fitted(stage.resources, gpus, cpus)} if stage.resources else {}
        )
        for name, stage in spec.stages.present().items()
    }
    fitted = spec.model_copy(
        update={
            "resources": _fitted(spec.resources, gpus, cpus),
            "stages": Stages.model_validate(stages),
            "scheduling": spec.scheduling.model_copy(update={"gang": "none"}),
        }
    )
    return job.model_copy(update={"spec": fitted})


def smaller_here(job: RLHFJob, fitted: RLHFJob) -> Iterator[str]:
    """What the stages ask for and do not get on this machine, in words; alike ones in one line."""
    stages: dict[str, list[str]] = {}
    for name in job.spec.stages.present():
        asked, here = job.spec.resources_of(name), fitted.spec.resources_of(name)
        if (asked.nodes, asked.ranks_per_node) != (here.nodes, here.ranks_per_node) or (
            asked.gpus_per_node and not here.gpus_per_node
        ):
            verb = "is" if asked.nodes == 1 else "are"
            what = f"{_nodes(asked)} {verb} asked for; here it is {_processes(here)}"
            stages.setdefault(what, []).append(name)
    return (f"{', '.join(names)}: {what}" for what, names in stages.items())


def _nodes(resources: Resources) -> str:
    of = _counted(resources.gpus_per_node, "GPU") if resources.gpus_per_node else None
    of = of or _counted(resources.processes_per_node, "process")
    return f"{_counted(resources.nodes, 'node')} of {of}"


def _processes(resources: Resources) -> str:
    if resources.gpus_per_node:
        return _counted(resources.gpus_per_node, "GPU")
    return f"{_counted(resources.processes_per_node, 'process')} on the CPU"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")


def _fitted(asked: Asked, gpus: int, cpus: int) -> Asked:
    update: dict[str, int] = {}
    if asked.nodes is not None:
        update["nodes"] = 1
    if asked.gpus_per_node is not None:
        update["gpus_per_node"] = min(asked.gpus_per_node, gpus)
    if asked.processes_per_node is not None:
        update["processes_per_node"] = min(asked.processes_per_node, max(1, cpus))
    return asked.model_copy(update=update)
