"""The whole screen of `rlhfctl watch`: stages, curves, pods, what it waits for, what happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus

from rlhf_cli.figures import KEY_FIGURES, figure_text
from rlhf_cli.output import age
from rlhf_cli.progress.history import SHOWN, History, sparkline
from rlhf_cli.progress.rows import stage_rows
from rlhf_cli.progress.terminal import STYLES, LiveView, stage_table
from rlhf_cli.targets.target import Happening, PodView

MOST_EVENTS: Final = 6
LABEL: Final = 20
VALUE: Final = 9
TOLD: Final = (
    ("Stalled", "True"),
    ("Scheduled", "False"),
    ("ApprovalNeeded", "True"),
    ("Suspended", "True"),
)
"""Conditions that say why nothing moves."""


class Screen(LiveView):
    """All that is known of a job."""

    def __init__(self, console: Console, place: str) -> None:
        self.history = History()
        self.pods: Sequence[PodView] = ()
        self.events: Sequence[Happening] = ()
        self._place = place
        super().__init__(console, overflow="crop")  # which draws it

    def show(self, job: RLHFJob) -> None:
        """Take a new status."""
        super().show(job)
        for name, stage in job.stage_statuses().items():
            if stage.phase == "Running":
                self.history.note(name, stage.metrics)

    def _render(self) -> RenderableType:
        if self._job is None:
            return Text(f"Looking for it in {self._place} …", style="dim")
        return screen(
            self._job,
            self._place,
            self.pods,
            self.events,
            self.history,
            self.console.width,
            datetime.now(UTC),
        )


def screen(
    job: RLHFJob,
    place: str,
    pods: Sequence[PodView],
    events: Sequence[Happening],
    history: History,
    width: int,
    now: datetime,
) -> Group:
    """Everything, for a terminal of this width. Pure."""
    blocks: list[list[RenderableType]] = [
        [_title(job, place)],
        [stage_table(stage_rows(job, now), width)],
        [*_curves(job, history, width)],
        [*_reasons(job)],
        [*_gangs(job, pods)],
        [_event(item, now) for item in events[-MOST_EVENTS:]],
    ]
    parts: list[RenderableType] = []
    for block in filter(None, blocks):
        parts += [*block, Text()]
    return Group(*parts[:-1])


def _title(job: RLHFJob, place: str) -> Text:
    status = job.status or JobStatus()
    words = [status.stage or "", f"{status.gpus} GPUs" if status.gpus else ""]
    eta = f"{status.eta} left" if status.eta else ""
    tail = "   ".join(word for word in (*words, eta) if word)
    style = STYLES.get(status.phase, "yellow")
    return Text.assemble(
        (job.metadata.name, "bold"), f" in {place}   ", (status.phase, style), f"   {tail}"
    )


def _curves(job: RLHFJob, history: History, width: int) -> Iterator[Text]:
    """A line for each figure of the stages under way, with its newest value."""
    for name, stage in job.stage_statuses().items():
        if stage.phase != "Running":
            continue
        for metric in SHOWN.get(name, ()):
            values = history.of(name, metric)
            if values:
                label = f"{name} {KEY_FIGURES.get(name, {}).get(metric, metric.split('/')[-1])}"
                room = max(8, width - LABEL - VALUE - 4)
                yield Text.assemble(
                    f"{label:<{LABEL}.{LABEL}} ",
                    (f"{figure_text(values[-1]):>{VALUE}}  ", "bold"),
                    (sparkline(values, room), "cyan"),
                )


def _reasons(job: RLHFJob) -> Iterator[Text]:
    for item in (job.status or JobStatus()).conditions:
        if (item.type, item.status) in TOLD:
            style = "red" if item.type == "Stalled" else "yellow"
            yield Text.assemble((f"{item.reason}: ", style), item.message)


def _gangs(job: RLHFJob, pods: Sequence[PodView]) -> Iterator[Text]:
    """A line for each attempt whose pods are there and have not all ended."""
    gangs: dict[tuple[str, int], list[PodView]] = {}
    for pod in pods:
        gangs.setdefault((pod.stage, pod.attempt), []).append(pod)
    for (stage, attempt), members in gangs.items():
        if all(pod.is_over for pod in members):
            continue
        phases: dict[str, int] = {}
        for pod in members:
            word = pod.phase + (f" ({pod.reason})" if pod.reason else "")
            phases[word] = phases.get(word, 0) + 1
        nodes = dict.fromkeys(pod.node for pod in members if pod.node)
        told = ", ".join(f"{count} {word}" for word, count in phases.items())
        where = f" on {', '.join(nodes)}" if nodes else ""
        yield Text(f"{stage} attempt {attempt}: {told}{where}", no_wrap=True, overflow="ellipsis")


def _event(item: Happening, now: datetime) -> Text:
    about = f"{item.about}: " if item.about else ""
    text = f"{age(item.time, now):>7}  {item.reason}  {about}{' '.join(item.message.split())}"
    style = "yellow" if item.type == "Warning" else "dim"
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
