"""Experiment trackers, by their own libraries and their usual environment variables.

Each that is installed and configured gets a run of its own for a stage on its inputs; a later
attempt on the same inputs goes on with it. A tracker works in a thread: one that is slow or cannot
be reached is tried again, and costs reports at most, never a step.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from rlhf_api.run import StageRun

MOST_WAITING: Final = 1000
"""Reports that wait for a tracker; further ones are lost."""
PAUSES: Final = (5.0, 20.0, 60.0, 300.0)
"""Seconds after each try that failed, beside those of the libraries; the last one from then on."""
MOST_TRIES: Final = 4
"""Of one report: a tracker may refuse it for what is in it. A run is begun as long as it takes."""
START_SECONDS: Final = 300.0
"""How long the service of Weights & Biases may take to start beside other work. Its library (0.31)
hangs for good where that takes longer."""
END_SECONDS: Final = 30.0
"""How long the end of a stage waits for what was not yet sent, by all trackers together."""
STOP_SECONDS: Final = 5.0
"""The same for an attempt that was told to end, whose pod will be killed."""
Environment = Mapping[str, str]
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Report(NamedTuple):
    """Metrics of a step, all of them finite; `time`: seconds since 1970."""

    step: int
    time: float
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """One run in a tracker. Every method but `is_configured` may block or raise."""

    def __init__(self, run: StageRun, environment: Environment) -> None: ...

    @staticmethod
    def is_configured(environment: Environment) -> bool: ...

    def log(self, report: Report) -> None: ...

    def end(self, is_done: bool) -> None: ...


class MLflow:
    """A run in the experiment MLFLOW_EXPERIMENT_NAME, else in one that is named after the job."""

    LINEAGE: Final = "rlhf.lineage"

    def __init__(self, run: StageRun, environment: Environment) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = environment.get("MLFLOW_EXPERIMENT_NAME", run.job.name)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run_id = self._earlier(experiment, run) or self._begin(experiment, run)

    @staticmethod
    def is_configured(environment: Environment) -> bool:
        return bool(environment.get("MLFLOW_TRACKING_URI"))

    def log(self, report: Report) -> None:
        from mlflow.entities import Metric

        milliseconds = int(report.time * 1000)
        items = [
            Metric(key, value, milliseconds, report.step) for key, value in report.metrics.items()
        ]
        self._client.log_batch(self._run_id, metrics=items)

    def end(self, is_done: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if is_done else "KILLED")

    def _earlier(self, experiment: str, run: StageRun) -> str | None:
        wanted = f"tags.`{self.LINEAGE}` = '{run.lineage}'"
        found = self._client.search_runs([experiment], wanted, max_results=1)
        if not found:
            return None
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    def _begin(self, experiment: str, run: StageRun) -> str:
        from mlflow.entities import Param

        tags = {self.LINEAGE: run.lineage, "rlhf.job": run.job.name, "rlhf.stage": run.stage}
        name = f"{run.job.name}-{run.stage}"
        made = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in settings_of(run).items()]
        self._client.log_batch(made, params=params[:100])
        return str(made)


class WeightsAndBiases:
    """A run in the project WANDB_PROJECT (default: rlhf); the job is its group."""

    SETTINGS: Final[dict[str, Any]] = {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "init_timeout": START_SECONDS,
        "x_service_wait": START_SECONDS,
        "finish_timeout": END_SECONDS,
        "finish_timeout_raises": False,
        # Its service tries for hours by default, and the process does not end before that.
        "x_graphql_retry_max": 2,
        "x_graphql_retry_wait_max_seconds": 2,
        "x_graphql_timeout_seconds": 5,
        "x_file_stream_retry_max": 10,
        "x_file_stream_retry_wait_max_seconds": 10,
        "x_file_stream_timeout_seconds": 10,
        "x_file_transfer_retry_max": 2,
        "x_file_transfer_timeout_seconds": 10,
    }

    def __init__(self, run: StageRun, environment: Environment) -> None:
        import wandb

        is_offline = environment.get("WANDB_MODE", "").lower() == "offline"
        settings = wandb.Settings(**self.SETTINGS)
        wandb.setup(settings)  # its service is started with these alone
        try:
            self._run = wandb.init(
                project=environment.get("WANDB_PROJECT", "rlhf"),
                group=run.job.name,
                name=f"{run.job.name}-{run.stage}",
                id=hashlib.sha256(run.lineage.encode()).hexdigest()[:16],
                resume=None if is_offline else "allow",
                dir=run.output,
                config=settings_of(run),
                settings=settings,
            )
        except Exception:
            wandb.teardown()  # else its service holds the run as one that is in use
            raise
        self._run.define_metric("*", step_metric="step")  # its own counter cannot go back

    @staticmethod
    def is_configured(environment: Environment) -> bool:
        mode = environment.get("WANDB_MODE", "").lower()
        return mode == "offline" or (mode != "disabled" and bool(environment.get("WANDB_API_KEY")))

    def log(self, report: Report) -> None:
        self._run.log({**report.metrics, "step": report.step})

    def end(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)


TRACKERS: Final[dict[str, type[Tracker]]] = {"mlflow": MLflow, "wandb": WeightsAndBiases}
"""By the module that each needs."""


class TrackerThread:
    """Feeds one tracker. What it does not take is tried again later; what is lost is told."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self._name, self._begin = name, begin
        self._waiting: queue.Queue[Report | bool] = queue.Queue()
        self._offered = self._taken = 0
        self._is_over = threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def offer(self, report: Report) -> None:
        """Sends it when its turn comes."""
        self._offered += 1
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(report)

    def end(self, is_done: bool) -> None:
        """Ends the run in the tracker, after what waits; does not wait for it."""
        self._waiting.put(is_done)
        self._is_over.set()

    def wait(self, seconds: float) -> None:
        """Until the tracker has taken all, or for so long; says what it did not take."""
        self._thread.join(max(seconds, 0.0))
        if lost := self._offered - self._taken:
            log.warning("%s has not got %d of %d reports", self._name, lost, self._offered)
        elif self._thread.is_alive():
            log.warning("%s has not ended its run; the stage ends without", self._name)

    def _work(self) -> None:
        tracker = self._patiently(self._begin)
        if tracker is None:
            return
        while not isinstance(item := self._waiting.get(), bool):
            self._patiently(partial(self._send, tracker, item), MOST_TRIES)
        self._patiently(partial(tracker.end, item), tries=1)

    def _send(self, tracker: Tracker, report: Report) -> None:
        tracker.log(report)
        self._taken += 1

    def _patiently(self, act: Callable[[], Result], tries: float = math.inf) -> Result | None:
        """What it returns; None where it fails until the stage is over, or so many times."""
        for number in count(1):
            try:
                result = act()
            except Exception as error:  # whatever a library or a server may come up with
                self._tell(error)
                pause = PAUSES[min(number, len(PAUSES)) - 1]
                if number >= tries or self._is_over.wait(pause):
                    return None
            else:
                self._tell(None)
                return result
        raise AssertionError("count does not end")

    def _tell(self, error: Exception | None) -> None:
        """Once for each kind of trouble, and once when it is over."""
        trouble = type(error).__name__ if error else ""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if error is None:
            log.warning("%s takes reports again", self._name)
            return
        said = str(error).splitlines() or [""]
        log.warning("%s takes no reports for now: %s: %s", self._name, trouble, said[0])


def start_trackers(run: StageRun, environment: Environment) -> list[TrackerThread]:
    """A thread for each tracker that is installed and configured."""
    return [
        TrackerThread(name, lambda kind=kind: kind(run, environment))  # type: ignore[misc]
        for name, kind in TRACKERS.items()
        if kind.is_configured(environment) and importlib.util.find_spec(name)
    ]


def end_trackers(trackers: Sequence[TrackerThread], is_done: bool) -> None:
    """Ends all runs; waits END_SECONDS for a stage that is done, else STOP_SECONDS, at most."""
    deadline = time.monotonic() + (END_SECONDS if is_done else STOP_SECONDS)
    for tracker in trackers:
        tracker.end(is_done)
    for tracker in trackers:
        tracker.wait(deadline - time.monotonic())


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that a tracker can draw."""
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def settings_of(run: StageRun) -> dict[str, Any]:
    """The stage's settings by their path, with what else the result depends on."""
    base = {"hash": run.hash, "seed": run.seed, "model": run.model.source}
    return base | dict(_flat(run.config.to_dict()))


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            found += _flat(item, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", item))
    return found
