"""What a run reports while it runs: metrics.jsonl, TensorBoard, trackers, progress, log lines.

The POSTs speak the protocol of transformers' KubeflowCallback (transformers/integrations/
integration_utils.py), so an operator that serves it shows any Hugging Face image's progress.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from rlhf_api.run import SAVED_STEP, StageRun

from rlhf_trainer.ranks import Ranks
from rlhf_trainer.trackers import Report, end_trackers, finite, start_trackers

POST_INTERVAL: Final = 5.0
"""Seconds between two reports to the operator, at least."""
TOKEN_LIFETIME: Final = 300.0
"""Seconds for which a token is used before its file, which the kubelet renews, is read again."""
ANSWER_READ: Final = 1 << 16
"""Bytes of an answer that are looked at; there is nothing in it to read."""
LINE_INTERVAL: Final = 2.0
"""Seconds after which a step has a line in the log again, however small its share of the run."""
LINE_SHARE: Final = 0.1
"""Share of the run after which a step has a line, however soon."""
SHOWN: Final = {
    "train/loss": "loss",
    "train/accuracy": "accuracy",
    "ppo/reward": "reward",
    "ppo/kl": "kl",
    "train/lr": "lr",
    "ppo/actor_lr": "lr",
}
log = logging.getLogger(__name__)


class Telemetry:
    """Rank 0 reports; on the other ranks every method does nothing."""

    def __init__(
        self, run: StageRun, ranks: Ranks, environment: Mapping[str, str] | None = None
    ) -> None:
        given = os.environ if environment is None else environment
        self._is_main, self._stage = ranks.is_main, run.stage
        self.newest: dict[str, float] = {}
        self._saved: dict[str, float] = {}
        self._started, self._first_done = time.monotonic(), -1
        self._last_line, self._last_share = 0.0, 0.0
        if not self._is_main:
            return
        directory = Path(run.output)
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard_directory = directory / "tensorboard"
        self._writer: Any = None
        self._poster = ProgressPoster.from_environment(given)
        self._trackers, self._is_done = start_trackers(run, given), False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step. Values that are not finite are written as null."""
        if not self._is_main:
            return
        self.newest |= metrics
        now = time.time()
        values = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"step": step, "time": now, "metrics": values}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        self._write_events(step, metrics, now)
        for tracker in self._trackers:
            tracker.offer(Report(step, now, finite(metrics)))

    def saved(self, step: int) -> None:
        """Have the next report name the step of the newest committed training state."""
        self._saved = {SAVED_STEP: step}

    def progress(self, done: int, total: int) -> None:
        """Say how far the stage is: `done` of `total` steps."""
        if not self._is_main:
            return
        if self._first_done < 0:  # a resumed run starts in the middle
            self._first_done, self._started = done, time.monotonic()
        self._is_done = done >= total
        eta = self._eta(done, total)
        if self._poster is not None:
            self._poster.offer(done, total, eta, {**self.newest, **self._saved})
        if self._line_is_due(done, total):
            log.info("%s", progress_line(self._stage, done, total, self.newest, eta))

    def close(self) -> None:
        """Flush everything; the last POST says 100 % if the last step was reached."""
        if not self._is_main or self._file.closed:
            return
        self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._poster is not None:
            self._poster.close()
        end_trackers(self._trackers, self._is_done)

    def _eta(self, done: int, total: int) -> float | None:
        steps = done - self._first_done
        if steps <= 0:
            return None
        return (time.monotonic() - self._started) / steps * (total - done)

    def _line_is_due(self, done: int, total: int) -> bool:
        now, share = time.monotonic(), done / max(total, 1)
        due = done in (total, self._first_done + 1) or now - self._last_line >= LINE_INTERVAL
        due = due or share - self._last_share >= LINE_SHARE
        if due:
            self._last_line, self._last_share = now, share
        return due

    def _write_events(self, step: int, metrics: Mapping[str, float], now: float) -> None:
        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

            self._tensorboard_directory.mkdir(exist_ok=True)
            self._writer = EventFileWriter(str(self._tensorboard_directory))
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        values = [Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._writer.add_event(Event(wall_time=now, step=step, summary=Summary(value=values)))


def progress_line(
    stage: str, done: int, total: int, metrics: Mapping[str, float], eta: float | None
) -> str:
    """`sft  step 120/400  loss 2.31  lr 1e-04  eta 0:42`."""
    parts = [stage, f"step {done}/{total}"]
    parts += [f"{label} {_short(metrics[key])}" for key, label in SHOWN.items() if key in metrics]
    if eta is not None and done < total:
        parts.append(f"eta {_clock(eta)}")
    return "  ".join(parts)


class ProgressPoster:
    """POSTs from a thread of its own, so that a slow server never slows a step. Failures are
    counted and otherwise silent: no report is worth a training run.
    """

    def __init__(self, url: str, token_file: str | None, ca_file: str | None) -> None:
        self._url, self._token_file, self._ca_file = url, token_file, ca_file
        self._token, self._token_read = "", -math.inf
        self._last_post, self._newest_body = -math.inf, b""
        self.failures = 0
        self._bodies: queue.Queue[bytes | None] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._post_all, daemon=True, name="progress")
        self._thread.start()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ProgressPoster | None:
        """The poster that KUBEFLOW_TRAINER_SERVER_URL asks for; None where it is unset."""
        url = environment.get("KUBEFLOW_TRAINER_SERVER_URL")
        if not url or environment.get("DISABLE_KUBEFLOW_INTEGRATION", "").upper() == "TRUE":
            return None
        token = environment.get("KUBEFLOW_TRAINER_SERVER_TOKEN")
        return cls(url, token, environment.get("KUBEFLOW_TRAINER_SERVER_CA_CERT"))

    def offer(self, done: int, total: int, eta: float | None, metrics: Mapping[str, float]) -> None:
        """Send it, unless the last one was sent less than 5 s ago; the end is always sent."""
        self._newest_body = progress_body(done, total, eta, metrics)
        now = time.monotonic()
        if now - self._last_post < POST_INTERVAL and done < total:
            return
        self._last_post = now
        self._put(self._newest_body)

    def close(self) -> None:
        """Send what is waiting, for some seconds at most."""
        self._put(None)
        self._thread.join(timeout=6)
        if self.failures:
            log.info("%d progress reports could not be delivered", self.failures)

    def _put(self, body: bytes | None) -> None:
        try:
            self._bodies.put_nowait(body)
        except queue.Full:  # the server is slow: the newest replaces the oldest
            with suppress(queue.Empty):
                self._bodies.get_nowait()
            self._bodies.put_nowait(body)

    def _post_all(self) -> None:
        while (body := self._bodies.get()) is not None:
            try:
                self._post(body)
            except (OSError, ValueError, HTTPException):  # URLError is an OSError
                self.failures += 1

    def _post(self, body: bytes) -> None:
        headers = {"Authorization": f"Bearer {self._read_token()}"}
        headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        context = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else None
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            response.read(ANSWER_READ)

    def _read_token(self) -> str:
        """The service-account token; it rotates, so it is read again every five minutes."""
        now = time.monotonic()
        if now - self._token_read > TOKEN_LIFETIME:
            if not self._token_file:
                raise ValueError("KUBEFLOW_TRAINER_SERVER_TOKEN names no token file")
            self._token = Path(self._token_file).read_text(encoding="utf-8").strip()
            self._token_read = now
        return self._token


def progress_body(done: int, total: int, eta: float | None, metrics: Mapping[str, float]) -> bytes:
    """The JSON of one report. 100 % is said at the end alone."""
    percent = 100 if done >= total else min(int(done / total * 100), 99)
    values = {**metrics, "current_step": done, "total_steps": total}
    status: dict[str, Any] = {
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
        "progressPercentage": percent,
        "metrics": [{"name": name, "value": str(value)} for name, value in values.items()],
    }
    if eta is not None:
        status["estimatedRemainingSeconds"] = max(0, int(eta))
    return json.dumps({"trainerStatus": status}).encode()


def _short(value: float) -> str:
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
