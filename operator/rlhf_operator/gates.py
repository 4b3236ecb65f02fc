"""Whether the gates behind earlier stages let a stage start: by a metric, by a person's word."""

from __future__ import annotations

import shlex

from rlhf_api.stages.common import MetricGate
from rlhf_api.status import FinishedRun

from rlhf_operator.decisions import Context, Decision
from rlhf_operator.inputs import annotation
from rlhf_operator.names import ANNOTATION_APPROVE, short


def gate_closed(context: Context) -> Decision | None:
    """The gate of each stage before this one holds before this one takes GPUs."""
    stages = context.job.spec.stages.present()
    for name, run in context.parent_runs.items():
        gate = stages[name].gate
        if gate is None:
            continue
        decision = _metric_out_of_range(name, gate, run) or _unapproved(context, name, gate, run)
        if decision:
            return decision
    return None


def _metric_out_of_range(name: str, gate: MetricGate, run: FinishedRun) -> Decision | None:
    if gate.metric is None:
        return None
    value = run.metrics.get(gate.metric)
    if value is None:
        known = ", ".join(sorted(run.metrics)) or "none"
        said = f"{name} has no metric {gate.metric}; it has {known}."
        return Decision("Blocked", "GateNotMet", said)
    low = gate.min is not None and value < gate.min
    high = gate.max is not None and value > gate.max
    if not (low or high):
        return None
    bound = f"below {gate.min:g}" if low else f"above {gate.max:g}"
    return Decision("Blocked", "GateNotMet", f"{gate.metric} of {name} is {value:.4g}, {bound}.")


def _unapproved(context: Context, name: str, gate: MetricGate, run: FinishedRun) -> Decision | None:
    """Approval names the result that was looked at, so that it never covers a later one."""
    key, value = f"{ANNOTATION_APPROVE}{name}", short(run.hash)
    given = annotation(context.job, key)
    if not gate.approval or (given and short(given) == value):
        return None
    if context.directory:
        how = f"rlhfctl approve {name} --dir {shlex.quote(context.directory)}"
    else:
        how = f"kubectl annotate rlhfjob {context.job.metadata.name} {key}={value} --overwrite"
    other = f" ({given[:64]!r}, which approve-{name} has, is another one)" if given else ""
    said = f"The result of {name} waits for a person{other}: {how}"
    return Decision("Waiting", "AwaitingApproval", said)
