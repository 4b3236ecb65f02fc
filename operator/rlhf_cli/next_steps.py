"""What a person may do about a job as it stands, as commands to copy. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus
from rlhf_operator import kueue

from rlhf_cli.targets.target import Target, ending

SUSPEND_AND_RESUME: Final = (("suspend", "--wait"), ("resume",))


def next_steps(target: Target, job: RLHFJob, *, is_alive: bool) -> Iterator[str]:
    """Lines; none where there is nothing to do but to wait."""
    name, status = job.metadata.name, job.status or JobStatus()
    stages = job.stage_statuses()
    failed = [stage for stage, item in stages.items() if item.phase == "Failed"]
    if ending(job) == "Ready":
        yield f"look at it:  {target.command('report', job=name)}"
        yield f"talk to it:  {target.command('chat', job=name)}"
        return
    if not is_alive and any(item.phase == "Running" for item in stages.values()):
        yield "no process works on it any more: it was killed, or the machine went down"
    for gate in approvals(job):
        yield f"approve the result of {gate}:  {target.command('approve', gate, job=name)}"
    for stage in failed:
        yield f"see why {stage} failed:  {target.command('logs', '--stage', stage, job=name)}"
    if failed:
        yield f"once that is mended:  {target.command('retry', job=name)}"
    closed = [stage for stage, item in stages.items() if item.reason == "GateNotMet"]
    for stage in closed:
        yield f"let {stage} start:  set another gate before it, or change the stage with the gate"
    is_held = closed and ending(job)
    if job.spec.suspend or not (is_alive or failed or is_held):
        yield f"let it go on:  {target.command('resume', job=name)}"
        return
    for waits in (c for c in status.conditions if (c.type, c.status) == ("Scheduled", "False")):
        if kueue.DEACTIVATED in waits.message:  # no room would help
            stop, go = (target.command(*words, job=name) for words in SUSPEND_AND_RESUME)
            yield f"have Kueue take it anew, once that is mended:  {stop} && {go}"
        else:
            yield "make room, ask for less, or wait; the condition Scheduled says what is missing"


def approvals(job: RLHFJob) -> list[str]:
    """Stages whose result waits for a person."""
    status, present = job.status or JobStatus(), job.spec.stages.present()
    waiting = [name for name, item in status.stages.items() if item.reason == "AwaitingApproval"]
    gates = {
        gate: None
        for name in waiting
        if name in present
        for gate in job.spec.stages.parents(name).values()
    }
    return [gate for gate in gates if (asked := present[gate].gate) and asked.approval]
