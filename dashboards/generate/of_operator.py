"""What the dashboard shows of the operator itself."""

from __future__ import annotations

from typing import Final

from panels import Panel, Query, Row


def quantiles(metric: str, *, labels: str = "") -> tuple[Query, ...]:
    """Median and 99 of 100, over all replicas."""
    rate = f"sum by (le) (rate({metric}_bucket{labels}[$__rate_interval]))"
    return tuple(
        Query(f"histogram_quantile({share}, {rate})", f"p{share * 100:.0f}")
        for share in (0.5, 0.99)
    )


OPERATOR: Final = Row(
    "Operator",
    (
        Panel(
            "Replicas that lead",
            "One of each release, but for some seconds when it changes.",
            (Query("sum by (namespace, job) (rlhf_operator_is_leader)", "{{namespace}}/{{job}}"),),
            width=6,
            thresholds=((None, "red"), (1.0, "green"), (2.0, "red")),
        ),
        Panel(
            "Passes",
            "How long a pass over a job takes.",
            quantiles("rlhf_operator_reconcile_duration_seconds"),
            "s",
            width=6,
        ),
        Panel(
            "Waiting for a pass",
            "From when a job's pass is due to when it begins.",
            quantiles("rlhf_operator_queue_wait_seconds"),
            "s",
            width=6,
        ),
        Panel(
            "Passes that failed",
            "A second, by reason.",
            (
                Query(
                    "sum by (reason) (rate(rlhf_operator_reconcile_errors_total"
                    "[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            "ops",
            width=6,
        ),
        Panel(
            "Queue",
            "Jobs that wait for a pass.",
            (
                Query(
                    "max by (namespace, job) (rlhf_operator_queue_depth)", "{{namespace}}/{{job}}"
                ),
            ),
            width=6,
        ),
        Panel(
            "Requests to the API server",
            "A second, by answer; 0 is none.",
            (
                Query(
                    "sum by (verb, code) (rate(rlhf_operator_api_requests_total"
                    "[$__rate_interval]))",
                    "{{verb}} {{code}}",
                ),
            ),
            "reqps",
            width=6,
            stacked=True,
        ),
        Panel(
            "Age of watches",
            "Since the last sign of life, on the replica that leads.",
            (
                Query(
                    "max by (resource) (rlhf_operator_watch_age_seconds and on (instance) "
                    "(rlhf_operator_is_leader == 1))",
                    "{{resource}}",
                ),
            ),
            "s",
            width=6,
        ),
        Panel(
            "Reports of trainers",
            "A second, by HTTP status.",
            (
                Query(
                    "sum by (code) (rate(rlhf_operator_progress_reports_total[$__rate_interval]))",
                    "{{code}}",
                ),
            ),
            "reqps",
            width=6,
            stacked=True,
        ),
    ),
)
