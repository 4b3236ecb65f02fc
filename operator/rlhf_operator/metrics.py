"""What Prometheus reads of the operator and of the jobs.

Counters and histograms count what this process did; gauges of jobs are read from the jobs that are
there at each scrape, so a job that goes takes its gauges along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from rlhf_api.status import AttemptEnd, JobStatus, StageStatus

from rlhf_operator.job_gauges import Object, collect_from
from rlhf_operator.times import read

MOST_WORDS: Final = 64
"""Different values of a label that comes from outside; the rest count as `other`."""
PASS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_BUCKETS: Final = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800)
OUTCOMES: Final = ("useful", "repeated", "waiting")


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(
        self,
        manifests: Callable[[], Iterable[Object]] = tuple,
        watch_ages: Callable[[], Mapping[str, float]] = dict,
        queue_depth: Callable[[], int] = int,
    ) -> None:
        """`manifests`: the RLHFJobs that are there. `watch_ages`: seconds by resource.
        `queue_depth`: jobs that wait for a pass. All three are asked at each scrape.
        """
        # Else each counter has a series beside it that nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._words: dict[str, set[str]] = {}
        self._make_operator_metrics(queue_depth)
        self._make_job_metrics()
        self.registry.register(_AtScrape(lambda: collect_from(manifests())))
        self.registry.register(_AtScrape(lambda: _of_watches(watch_ages())))

    def _make_operator_metrics(self, queue_depth: Callable[[], int]) -> None:
        own: dict[str, Any] = {"registry": self.registry, "namespace": "rlhf_operator"}
        self._passes = Histogram(
            "reconcile_duration_seconds",
            "Passes over jobs; result: ok, error.",
            ["result"],
            buckets=PASS_BUCKETS,
            **own,
        )
        self._errors = Counter(
            "reconcile_errors",
            "Passes that did not end as they should: ApiError, StatusRefused, Bug; OutOfDate, "
            "which is repeated on fresh data, NotLeading and Cancelled are no fault.",
            ["reason"],
            **own,
        )
        self._requests = Counter(
            "api_requests",
            "Requests to the API server; code 0: no answer.",
            ["verb", "resource", "code"],
            **own,
        )
        depth = Gauge("queue_depth", "Jobs that wait for a pass.", **own)
        depth.set_function(queue_depth)
        self._waits = Histogram(
            "queue_wait_seconds", "Of a pass, from due to begun.", buckets=WAIT_BUCKETS, **own
        )
        self._leads = Gauge("is_leader", "1 on the replica that acts.", **own)
        self._reports = Counter(
            "progress_reports", "Reports of trainers, by HTTP status.", ["code"], **own
        )

    def _make_job_metrics(self) -> None:
        own: dict[str, Any] = {"registry": self.registry, "namespace": "rlhf"}
        self._durations = Histogram(
            "stage_duration_seconds",
            "Attempts, from start to end; result: done, fault, final, disruption, stopped.",
            ["stage", "result"],
            buckets=STAGE_BUCKETS,
            **own,
        )
        self._gpu_seconds = Counter(
            "gpu_seconds",
            "Devices times seconds of attempts that ended; outcome: useful, repeated, waiting.",
            ["stage", "outcome"],
            **own,
        )
        self._restarts = Counter(
            "stage_restarts",
            "Attempts that followed one that did not finish; cause: fault, final, disruption, "
            "stopped.",
            ["stage", "cause"],
            **own,
        )

    def reconciled(self, seconds: float, error: str | None) -> None:
        """A pass has ended; `error`: one word for what went wrong."""
        self._passes.labels("error" if error else "ok").observe(seconds)
        if error:
            self._errors.labels(self._word("reason", error)).inc()

    def api_request(self, verb: str, resource: str, code: int) -> None:
        """The API server has answered; code 0: it has not."""
        self._requests.labels(verb, self._word("resource", resource), str(code)).inc()

    def waited(self, seconds: float) -> None:
        """A job has waited so long for its pass."""
        self._waits.observe(seconds)

    def leads(self, is_leader: bool) -> None:
        """Whether this process leads."""
        self._leads.set(is_leader)

    def reported(self, code: int) -> None:
        """A trainer's report has been answered."""
        self._reports.labels(str(code)).inc()

    def wrote(self, before: JobStatus | None, after: JobStatus) -> None:
        """A status has been written in place of another."""
        old = before or JobStatus()
        for name, stage in after.every_stage().items():
            self._wrote_stage(name, old.of(name), stage)

    def _wrote_stage(self, name: str, old: StageStatus, new: StageStatus) -> None:
        if new.ended and new.ended != old.ended:
            seconds = _seconds_of(old, new, new.ended)
            if seconds is not None:
                self._durations.labels(name, new.ended.kind.lower()).observe(seconds)
        for outcome in OUTCOMES:
            if (more := _spent(new, outcome) - _spent(old, outcome)) > 0:
                self._gpu_seconds.labels(name, outcome).inc(more)
        for cause, count in new.restarts.items():
            if (more := count - old.restarts.get(cause, 0)) > 0:
                self._restarts.labels(name, cause.lower()).inc(more)

    def _word(self, label: str, word: str) -> str:
        """The word, or `other` where the label has had too many."""
        known = self._words.setdefault(label, set())
        if len(known) < MOST_WORDS:
            known.add(word)
        return word if word in known else "other"

    async def handle(self, request: web.Request) -> web.Response:
        """GET /metrics, in the format that the client prefers."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self.registry), headers={"Content-Type": content_type})


def _of_watches(ages: Mapping[str, float]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "rlhf_operator_watch_age_seconds",
        "Since the last sign of life of a watch.",
        labels=["resource"],
    )
    for resource, age in ages.items():
        family.add_metric([resource], age)
    yield family


class _AtScrape(Collector):
    """Families that are made when somebody asks."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _spent(stage: StageStatus, outcome: str) -> int:
    return int(getattr(stage.gpu_seconds, outcome, 0))


def _seconds_of(old: StageStatus, new: StageStatus, ended: AttemptEnd) -> float | None:
    """How long an attempt lasted that has just ended; the next one may have begun already."""
    began = old.start_time if old.attempt == ended.attempt and old.start_time else new.start_time
    if began is None:
        return None
    return max((read(ended.time) - read(began)).total_seconds(), 0.0)
