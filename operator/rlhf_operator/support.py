"""What a valid job asks for that this cluster, or this machine, cannot give. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.problems import Problem
from rlhf_api.sources import named_sources, uris

from rlhf_operator.render.gang import GANGS
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.volumes import scheme

REACHABLE: Final = "pvc://, hf://, s3://, gs:// or oci://"


def unsupported(job: RLHFJob, platform: Platform) -> list[Problem]:
    """Every reason why the job cannot run here; empty where it can."""
    return [*_sources(job, platform), *_gang(job, platform)]


def _sources(job: RLHFJob, platform: Platform) -> Iterator[Problem]:
    for ref in named_sources(job.spec):
        for uri in uris(ref.value):
            kind, path = scheme(uri), f"spec.{ref.field}"
            if kind == "" and not platform.is_one_machine:
                said = f"{uri} is a path of one machine, which pods cannot see"
                yield Problem(path, said, f"{REACHABLE}; rlhfctl run reads paths")
            if kind == "oci" and platform.is_one_machine:
                said = f"{uri} cannot be mounted on one machine"
                yield Problem(path, said, "a local path, pvc://, hf://, s3:// or gs://")


def _gang(job: RLHFJob, platform: Platform) -> Iterator[Problem]:
    """A scheduler that is named is there, and gets what it waits for. `auto` finds its own."""
    scheduling = job.spec.scheduling
    if scheduling.gang in ("auto", "none") or platform.is_one_machine:
        return
    gang = GANGS[scheduling.gang]
    if gang.needs_queue and not (scheduling.queue or platform.defaults.queue):
        said = f"is missing, and {scheduling.gang} admits only what names a queue"
        yield Problem("spec.scheduling.queue", said, "a queue of the job's namespace")
    if platform.served and not gang.kinds(platform):
        found = [name for name, other in GANGS.items() if other.kinds(platform)]
        said = f"is {scheduling.gang}, which this cluster does not serve"
        yield Problem("spec.scheduling.gang", said, " or ".join(["auto", "none", *found]))
