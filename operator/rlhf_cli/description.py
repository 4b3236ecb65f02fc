"""The text of `rlhfctl describe`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.text import Text
from rlhf_api.job import RLHFJob
from rlhf_api.sources import named_sources
from rlhf_api.status import JobStatus

from rlhf_cli.figures import between, device_time, duration, figure_text
from rlhf_cli.next_steps import next_steps
from rlhf_cli.output import age, table
from rlhf_cli.progress.rows import stage_rows
from rlhf_cli.progress.terminal import STYLES
from rlhf_cli.targets.target import Happening, Object, PodView, Target

LABEL: Final = 14
MOST_EVENTS: Final = 15
MOST_METRICS: Final = 12
MOST_PODS: Final = 24
"""That have a line each."""
GOOD: Final = frozenset({("Ready", "True"), ("Scheduled", "True")})
BAD: Final = frozenset({("Stalled", "True"), ("Scheduled", "False"), ("ApprovalNeeded", "True")})


def description(
    target: Target,
    item: Object,
    job: RLHFJob,
    pods: Sequence[PodView],
    events: Sequence[Happening],
    now: datetime,
    *,
    is_alive: bool,
) -> Iterator[Text]:
    """Its lines."""
    yield from _head(item, job, now)
    yield from _section("Conditions", _conditions(job, now))
    yield from _section("Stages", _stages(job, now))
    yield from _section("Metrics", _metrics(job))
    yield from _section("Results", _results(job))
    yield from _section("Pods", _pods(pods))
    yield from _section("Events", events_table(events[-MOST_EVENTS:], now))
    steps = next_steps(target, job, is_alive=is_alive)
    yield from _section("What to do next", [Text(step) for step in steps])


def _head(item: Object, job: RLHFJob, now: datetime) -> Iterator[Text]:
    meta, status, spec = item["metadata"], job.status or JobStatus(), job.spec
    facts = {
        "Name": meta["name"],
        "Namespace": meta.get("namespace", ""),
        "Labels": ", ".join(f"{k}={v}" for k, v in (meta.get("labels") or {}).items()),
        "Age": age(meta.get("creationTimestamp") or status.start_time, now),
        "Phase": status.phase + (f", {status.stage}" if status.stage else ""),
        "Model": f"{spec.model.source}{f'@{spec.model.revision}' if spec.model.revision else ''}",
        "Data": _data(job),
        "Checkpoints": status.storage or "",
        "Scheduler": _scheduler(status),
        "Device time": device_time(status),
    }
    for label, value in facts.items():
        if value:
            yield Text.assemble((f"{label + ':':<{LABEL}}", "bold"), value)


def _data(job: RLHFJob) -> str:
    """Each source once, with the fields that name it."""
    users: dict[str, list[str]] = {}
    for ref in named_sources(job.spec):
        if ref.field != "model":
            field = ref.field.removeprefix("stages.").removesuffix(".data")
            users.setdefault(ref.value.source, []).append(field)
    gap = "\n" + " " * LABEL
    return gap.join(f"{source} ({', '.join(fields)})" for source, fields in users.items())


def _scheduler(status: JobStatus) -> str:
    found = status.scheduling
    return f"{found.gang}{f' ({found.reason})' if found.reason else ''}" if found else ""


def _section(title: str, lines: Sequence[Text]) -> Iterator[Text]:
    if lines:
        yield Text()
        yield Text(title, style="bold")
        for line in lines:
            yield Text("  ") + line


def _conditions(job: RLHFJob, now: datetime) -> list[Text]:
    found = (job.status or JobStatus()).conditions
    cells = [
        [item.type, item.status, age(item.last_transition_time, now), item.reason, item.message]
        for item in found
    ]
    lines = [Text(line) for line in _table(["TYPE", "STATUS", "FOR", "REASON", "MESSAGE"], cells)]
    for line, item in zip(lines[1:], found, strict=True):
        key = (item.type, item.status)
        line.stylize("green" if key in GOOD else "yellow" if key in BAD else "")
    return lines


def _stages(job: RLHFJob, now: datetime) -> list[Text]:
    status = job.stage_statuses()
    shown = stage_rows(job, now)
    cells = []
    for row in shown:
        stage = status[row.name]
        faults = ", ".join(f"{count} {kind}" for kind, count in stage.restarts.items())
        percent = f"{row.percent:.0f} %" if row.percent is not None else ""
        note = row.note.replace("\n", " ")
        words = [str(row.attempt or ""), percent, row.times, faults, note or row.figures]
        cells.append([row.name, row.phase, *words])
    head = ["NAME", "PHASE", "ATTEMPT", "DONE", "TIME", "RESTARTS", ""]
    lines = [Text(line) for line in _table(head, cells)]
    for line, row in zip(lines[1:], shown, strict=True):
        line.stylize(STYLES.get(row.phase, ""))
    return lines


def _metrics(job: RLHFJob) -> list[Text]:
    """Of each stage, evaluations first."""
    lines = []
    for name, stage in job.stage_statuses().items():
        names = sorted(stage.metrics, key=lambda metric: (not metric.startswith("eval/"), metric))
        told = [f"{metric} {figure_text(stage.metrics[metric])}" for metric in names[:MOST_METRICS]]
        if told:
            more = f"   and {len(names) - len(told)} more" if len(names) > len(told) else ""
            lines.append(Text(f"{name:<8}{'   '.join(told)}{more}"))
    return lines


def _results(job: RLHFJob) -> list[Text]:
    cells = []
    for name, stage in job.stage_statuses().items():
        if stage.checkpoint and stage.phase == "Succeeded":
            spent = between(stage.start_time, stage.completion_time)
            time = duration(spent) if spent is not None else ""
            cells.append([name, time, stage.checkpoint.uri, stage.checkpoint.digest])
    return [Text(line) for line in _table(["STAGE", "TIME", "CHECKPOINT", "DIGEST"], cells)]


def _pods(pods: Sequence[PodView]) -> list[Text]:
    """A line a pod; where there are many, one for all of a gang that are alike: what is wrong with
    a few would be lost among hundreds that run."""
    alike: dict[tuple[object, ...], list[PodView]] = {}
    for pod in pods:
        own = () if len(pods) > MOST_PODS else (pod.name,)
        alike.setdefault((pod.stage, pod.attempt, pod.phase, pod.reason, *own), []).append(pod)
    cells = []
    for first, *others in alike.values():
        name = f"{first.name} and {len(others)} more" if others else first.name
        cells.append([name, first.phase, "" if others else first.node, first.reason])
    return [Text(line) for line in _table(["NAME", "PHASE", "NODE", "REASON"], cells)]


def events_table(events: Sequence[Happening], now: datetime) -> list[Text]:
    """Newest last; warnings in yellow."""
    cells = [
        [
            age(item.time, now) + (f" (x{item.times})" if item.times > 1 else ""),
            item.type,
            item.reason,
            item.about,
            " ".join(item.message.split()),
        ]
        for item in events
    ]
    lines = [Text(line) for line in _table(["AGE", "TYPE", "REASON", "POD", "MESSAGE"], cells)]
    for line, item in zip(lines[1:], events, strict=True):
        line.stylize("yellow" if item.type == "Warning" else "")
    return lines


def _table(heading: list[str], cells: list[list[str]]) -> list[str]:
    """Nothing where there is no row; columns without any cell are left out."""
    if not cells:
        return []
    kept = [n for n in range(len(heading)) if any(row[n] for row in cells)]
    return table([[row[n] for n in kept] for row in [heading, *cells]])
