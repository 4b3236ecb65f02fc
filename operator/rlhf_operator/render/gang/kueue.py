"""Kueue: labels on the Job, which is made suspended; Kueue makes the rest.

From then on spec.suspend belongs to Kueue; a new attempt is a new Job with a name of its own.
The time limit of an attempt stays with the Job controller, which ends the Job: Kueue's own label
for it, max-exec-time-seconds, has it suspended for good, and counts from a little earlier.
"""

from __future__ import annotations

from typing import Final

from rlhf_operator.render.gang.scheduler import Gang, PodSet, pod_template, serves
from rlhf_operator.render.metadata import Object

GROUP: Final = "kueue.x-k8s.io"
KINDS: Final = tuple(f"{GROUP}/{version}/Workload" for version in ("v1", "v1beta2", "v1beta1"))


def _mark(pods: PodSet, job: Object) -> None:
    queue = pods.key.job.spec.scheduling.queue
    if queue is None:
        return
    job["metadata"]["labels"][f"{GROUP}/queue-name"] = queue
    job["spec"]["suspend"] = True
    if topology := pods.resources.topology:
        meta, _ = pod_template(job)
        meta["annotations"][f"{GROUP}/podset-{topology.mode}-topology"] = topology.level


KUEUE = Gang(
    kinds=serves(*KINDS),
    objects=lambda pods: [],
    mark=_mark,
    makes_its_own=True,
    needs_queue=True,
    suspends=True,
)
