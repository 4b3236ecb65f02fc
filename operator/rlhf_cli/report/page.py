"""The report as text: a pure function of a run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import jinja2
from pydantic.fields import FieldInfo
from rlhf_api.base import Contract
from rlhf_api.run import PREPARE
from rlhf_api.status import StageStatus

from rlhf_cli.figures import MODELS, TITLES, duration, figure_text, key_figures, model_scores
from rlhf_cli.report.collect import Run, StageRecord
from rlhf_cli.report.curves import curve
from rlhf_cli.report.panels import PANELS, STEP_NAMES, Panel
from rlhf_cli.report.records import Answer, Series, series
from rlhf_cli.report.verdicts import verdict
from rlhf_cli.yaml_text import write_document

TEMPLATE: Final = "template.html.j2"


class Plot(NamedTuple):
    """A panel that has something to show."""

    title: str
    unit: str
    labels: list[str]
    svg: str


class PromptRow(NamedTuple):
    """A prompt with the answer of each model that gave one."""

    prompt: str
    answers: list[Answer | None]


class DataNote(NamedTuple):
    """How many rows a stage used, and which it left out."""

    title: str
    train: int
    heldout: int
    left_out: list[str]
    unread: list[str]


class Bar(NamedTuple):
    """A model's score as a bar from `start` to `start + width`, in percent of the scale."""

    model: str
    text: str
    start: float
    width: float
    is_negative: bool


def render_report(run: Run) -> str:
    """report.html. The same run gives the same bytes."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            run=run,
            job=run.job,
            verdicts=[
                (TITLES[item.name], item.status.phase, verdict(item))
                for item in run.stages
                if item.name != PREPARE or item.status.phase != "Succeeded"
            ],
            stages=[(TITLES[item.name], item, plots(item)) for item in run.stages],
            bars=bars(model_scores(run.job)),
            models=[TITLES[model] for model in _models(run.answers)],
            prompts=prompt_rows(run),
            manifest=manifest_text(run),
            versions=_versions(run),
            data=[_data_note(item) for item in run.stages if item.data],
        )
    )


def plots(record: StageRecord) -> list[Plot]:
    """The panels of a stage that have a curve to show: a lone point is told in words elsewhere."""
    found = [_plot(record, panel) for panel in PANELS.get(record.name, ())]
    return [plot for plot in found if plot]


def _plot(record: StageRecord, panel: Panel) -> Plot | None:
    lines: list[tuple[str, Series]] = [
        (line.label, points) for line in panel.lines if (points := series(record.rows, line.metric))
    ]
    if not any(len(points) > 1 for _, points in lines):
        return None
    title = f"{TITLES[record.name]}: {panel.title}"
    svg = curve(title, lines, STEP_NAMES.get(record.name, "step"), panel.is_noisy)
    return Plot(panel.title, panel.unit, [label for label, _ in lines], svg)


def bars(values: dict[str, float]) -> list[Bar]:
    """Scores on one scale that starts at 0, or at the lowest negative score."""
    low, high = min(0.0, *values.values(), 0.0), max(0.0, *values.values(), 0.0)
    if high <= 1 and low >= 0:
        high = 1.0  # a share reads best against the whole
    span = (high - low) or 1.0
    return [
        Bar(
            TITLES[model],
            figure_text(value),
            (min(value, 0.0) - low) / span * 100,
            abs(value) / span * 100,
            value < 0,
        )
        for model, value in values.items()
    ]


def prompt_rows(run: Run) -> list[PromptRow]:
    """Each prompt that is shown, with the answers in the order of the models."""
    shown = run.job.spec.evaluation.shown if run.job.spec.evaluation else 0
    by_prompt: dict[str, dict[str, Answer]] = {}
    for answer in run.answers:
        by_prompt.setdefault(answer.id, {}).setdefault(answer.model, answer)
    models = _models(run.answers)
    rows = [
        PromptRow(next(iter(found.values())).prompt, [found.get(model) for model in models])
        for found in by_prompt.values()
    ]
    return rows[:shown]


def manifest_text(run: Run) -> str:
    """The manifest as it can be saved and run again; what is at its default is left out."""
    metadata = run.job.metadata.model_copy(update={"uid": "", "generation": 1})
    job = run.job.model_copy(update={"metadata": metadata, "status": None})
    return write_document(written_by_user(job))


def written_by_user(value: Any) -> Any:
    """Plain values without fields at their defaults."""
    if isinstance(value, Contract):
        fields = type(value).model_fields
        return {
            info.alias or name: written_by_user(getattr(value, name))
            for name, info in fields.items()
            if info.is_required() or getattr(value, name) != _default(info)
        } | (value.model_extra or {})
    if isinstance(value, dict):
        return {key: written_by_user(item) for key, item in value.items()}
    return [written_by_user(item) for item in value] if isinstance(value, list | tuple) else value


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True)


def _data_note(record: StageRecord) -> DataNote:
    data = record.data
    left_out = data.get("leftOut")
    rows = [row for row in left_out if isinstance(row, dict)] if isinstance(left_out, list) else []
    told = [f"{row.get('file')}:{row.get('line')}: {row.get('reason')}" for row in rows]
    files = data.get("unread")
    unread = [str(file) for file in files] if isinstance(files, list) else []
    return DataNote(
        TITLES[record.name], _count(data, "train"), _count(data, "heldout"), told, unread
    )


def _count(data: dict[str, Any], key: str) -> int:
    return value if isinstance(value := data.get(key), int) else 0


def _models(answers: Sequence[Answer]) -> list[str]:
    given = {answer.model for answer in answers}
    return [model for model in MODELS if model in given]


def _versions(run: Run) -> dict[str, str]:
    """Versions as the run recorded them; what a trainer itself recorded counts more."""
    found = {str(name): str(value) for name, value in run.versions.items()}
    for record in run.stages:
        found |= {str(name): str(value) for name, value in record.versions.items()}
    return dict(sorted(found.items()))


def _stage_time(status: StageStatus) -> str:
    if not status.start_time or not status.completion_time:
        return "–"
    return duration(_seconds(status.completion_time) - _seconds(status.start_time))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters: dict[str, Any] = {
        "figure": figure_text,
        "stage_time": _stage_time,
        "key_figures": key_figures,
    }
    environment.filters.update(filters)
    return environment
