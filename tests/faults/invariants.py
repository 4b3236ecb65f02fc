"""What must hold whatever happened to the operator: each gives sentences on how it was broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from faults.audit import Audit, Call
from faults.ledger import Entry, History, Object

Attempt = tuple[str, int]
"""Stage and number."""

TIMES: Final = ("Time", "time", "timeline", "gpuSeconds")
OF_ONE_RUN: Final = ("pod", "node", "uri")
"""Names that the cluster, or the attempt, chose."""


class Run(NamedTuple):
    """One pipeline: what was on the API server, what the operator wrote, how it ended."""

    namespace: str
    history: History
    audit: Audit
    end: Object
    """`outcome`, when nothing happened any more."""
    has_struck: bool
    """Whether what was to be done to the operator was done."""
    left_after_delete: list[str]


class Endless(Exception):
    """A pipeline that did not come to its end: what was reached, and what the operator said."""


class Expected(NamedTuple):
    """What every run has to come to."""

    end: Object
    """The outcome of the run that nothing disturbed."""
    attempts: Mapping[str, int]
    """Of each stage: one, and one more for each pod that the cluster took."""


def i1_never_two_live_attempts(run: Run, expected: Expected) -> Iterator[str]:
    """Nor any attempt whose number was not written down before its Job was made."""
    live: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in run.history.of("Pod"):
        stage, number = attempt_of(entry.item)
        live[stage].pop(entry.item["metadata"]["uid"], None)
        if entry.type != "DELETED" and is_live(entry.item):
            live[stage][entry.item["metadata"]["uid"]] = number
        if len(numbers := set(live[stage].values())) > 1:
            yield f"pods of attempts {sorted(numbers)} of {stage} lived at the same time"
    written = {of: entry.version for entry, of in reversed(list(_numbers_written(run)))}
    for entry in run.history.of("Job"):
        of = attempt_of(entry.item)
        if entry.type == "ADDED" and written.get(of, entry.version) >= entry.version:
            yield f"the Job of {of} was made before its number was in the status"


def i2_finished_stages_are_neither_repeated_nor_lost(run: Run, expected: Expected) -> Iterator[str]:
    """Counted by the Jobs that ever were, by UID."""
    made = Counter(attempt_of(e.item) for e in run.history.of("Job") if e.type == "ADDED")
    wanted = {(stage, n + 1): 1 for stage, most in expected.attempts.items() for n in range(most)}
    if dict(made) != wanted:
        yield f"Jobs that were made: {dict(made)}, not {wanted}"
    for stage in expected.attempts:
        if (phase := run.end["stages"][stage]["phase"]) != "Succeeded":
            yield f"{stage} is {phase} in the end"


def i3_delete_leaves_nothing(run: Run, expected: Expected) -> Iterator[str]:
    """The operator was dead by then."""
    yield from (f"{name} is left after the delete" for name in run.left_after_delete)


def i4_the_end_is_that_of_the_undisturbed_run(run: Run, expected: Expected) -> Iterator[str]:
    """Status without times, outputs, children."""
    if run.end != expected.end:
        yield f"the end differs: {'; '.join(differences(expected.end, run.end))}"


def i5_attempts_rise_once_per_cause(run: Run, expected: Expected) -> Iterator[str]:
    """In every version of the status that ever was."""
    seen: dict[str, int] = {}
    for entry in run.history.of("RLHFJob"):
        now = attempts_in(entry.item)
        for stage in {*seen, *now}:
            before, number = seen.get(stage, 0), now.get(stage, 0)
            if number - before not in (0, 1):
                yield f"the attempt of {stage} went from {before} to {number}"
        seen = now
    if seen != expected.attempts:
        yield f"attempts in the end: {seen}, not {expected.attempts}"


def i7_nothing_is_written_at_the_end(run: Run, expected: Expected) -> Iterator[str]:
    """Once Ready was written, by whichever life: an answer that got lost may be asked for again."""
    ready = next(e for e in run.history.of("RLHFJob") if is_ready(e.item))
    later = [e for e in run.history.of("RLHFJob") if e.version > ready.version]
    if any(e.type == "MODIFIED" and e.item["status"] != ready.item["status"] for e in later):
        yield "the status changed after Ready was written"
    calls = run.audit.calls
    last = max(n for n, call in enumerate(calls) if call.is_status and call.code == 200)
    later_calls = [call for call in calls[last + 1 :] if not _is_sent_twice(call, calls[last])]
    if surplus := [call.name for call in later_calls]:
        yield f"calls after the last status: {surplus}"


INVARIANTS: Final = {
    "I1": i1_never_two_live_attempts,
    "I2": i2_finished_stages_are_neither_repeated_nor_lost,
    "I3": i3_delete_leaves_nothing,
    "I4": i4_the_end_is_that_of_the_undisturbed_run,
    "I5": i5_attempts_rise_once_per_cause,
    "I7": i7_nothing_is_written_at_the_end,
}


def outcome(history: History, children: list[Object]) -> Object:
    """All of an end that must not depend on what happened to the operator."""
    (job,) = history.there("RLHFJob").values()
    status = timeless(job["status"])
    stages = {"prepare": status.pop("prepare"), **status.pop("stages")}
    names = Counter(f"{c['kind']}/{_of_controller(c)}" for c in children)
    return {"job": status, "stages": stages, "children": dict(names)}


def timeless(value: Any) -> Any:
    """Without what differs between two runs that nothing disturbed."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.endswith(TIMES) and k not in OF_ONE_RUN}
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{path}.{k}")]
    return [] if one == other else [f"{path.removeprefix('.')}: {one!r} → {other!r}"]


def attempt_of(item: Object) -> Attempt:
    """Whose a Job or a pod is."""
    labels = item["metadata"]["labels"]
    return labels["rlhf.dev/stage"], int(labels["rlhf.dev/attempt"])


def attempts_in(job: Object) -> dict[str, int]:
    """The number of the newest attempt of each stage that has had one, in a status."""
    status = job.get("status") or {}
    stages = {"prepare": status.get("prepare") or {}, **(status.get("stages") or {})}
    return {name: of["attempt"] for name, of in stages.items() if of.get("attempt")}


def is_live(pod: Object) -> bool:
    """Whether its processes may still run."""
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def is_ready(job: Object | None) -> bool:
    """Whether the RLHFJob says Ready=True."""
    found = ((job or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in found)


def _numbers_written(run: Run) -> Iterator[tuple[Entry, Attempt]]:
    for entry in run.history.of("RLHFJob"):
        for of in attempts_in(entry.item).items():
            yield entry, of


def _is_sent_twice(call: Call, last: Call) -> bool:
    """Whether the operator's HTTP library sent the last status again, as it may send any PUT whose
    connection broke (RFC 9110, 9.2.2), and the API server refused it for its resourceVersion."""
    is_same_life = call.life == last.life
    return last.fault == "cut after" and is_same_life and call.is_status and call.code == 409


def _of_controller(item: Object) -> str:
    """A name without the letters that a controller appends to make it unique."""
    name = str(item["metadata"]["name"])
    return name.rpartition("-")[0] if item["metadata"].get("generateName") else name
