"""What trainers report while they run, read from the body of a request.

The protocol is that of transformers' KubeflowCallback (integrations/integration_utils.py): a POST
of ``{"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name",
"value"}], "lastUpdatedTime"}}`` with a bearer token, numbers in `metrics` written as text. So any
image that is based on transformers shows its progress without code of ours.
"""

from __future__ import annotations

import json
import math
from typing import Final

from rlhf_operator.messages import plain_name
from rlhf_operator.observed import Progress

BODY_LIMIT: Final = 64 * 1024
"""Bytes; a report has a few dozen metrics."""
METRIC_LIMIT: Final = 64
LONGEST: Final = 10 * 365 * 86_400.0
"""Seconds that an estimate may be; one of a run that has barely begun may be anything."""
DIGITS: Final = 4
"""Significant digits of a metric; what changes behind them is noise."""


def parse_report(body: bytes) -> Progress | None:
    """The report in a request's body, rounded; None where it is something else."""
    try:
        report = json.loads(body)["trainerStatus"]
        metrics = report.get("metrics") or []
        values = {plain_name(str(item["name"])): float(item["value"]) for item in metrics}
        percent = _number(report.get("progressPercentage"), 100.0)
        remaining = _number(report.get("estimatedRemainingSeconds"), LONGEST)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    finite = {name: _rounded(value) for name, value in values.items() if math.isfinite(value)}
    return Progress(
        None if percent is None else round(percent, 1),
        None if remaining is None else float(f"{remaining:.2g}"),
        dict(list(finite.items())[:METRIC_LIMIT]),
    )


def merged(before: Progress, after: Progress) -> Progress:
    """The newer report with the metrics that only the older one names; METRIC_LIMIT at most."""
    older = {name: value for name, value in before.metrics.items() if name not in after.metrics}
    room = METRIC_LIMIT - len(after.metrics)
    return after._replace(metrics={**dict(list(older.items())[:room]), **after.metrics})


def _rounded(value: float) -> float:
    """Counts such as a step stay whole."""
    return value if value.is_integer() else float(f"{value:.{DIGITS}g}")


def _number(value: object, highest: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(max(float(value), 0.0), highest)
