"""Takes the reports of trainers while they run.

The protocol is that of transformers' KubeflowCallback (integrations/integration_utils.py): a POST
of ``{"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name",
"value"}], "lastUpdatedTime"}}`` with a bearer token, numbers in `metrics` written as text. So any
image that is based on transformers shows its progress without code of ours.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

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


class LoopbackServer:
    """A progress server for the pods of one machine: reachable from it alone, one token a run."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self._reports: dict[tuple[str, int], Progress] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._serve, name="progress", daemon=True).start()

    def reports(self) -> Mapping[tuple[str, int], Progress]:
        """The newest report of each stage and attempt."""
        with self._lock:
            return dict(self._reports)

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)  # how long `close` waits at most

    def take(self, path: str, authorization: str, body: bytes) -> int:
        """Keeps a report; the HTTP status to answer with. The path ends with STAGE/ATTEMPT."""
        if not secrets.compare_digest(authorization.encode(), f"Bearer {self.token}".encode()):
            return 401
        stage, _, attempt = path.rstrip("/").rpartition("/")
        report = parse_report(body)
        if report is None or not attempt.isdecimal():
            return 400
        key = (stage.rpartition("/")[2], int(attempt))
        with self._lock:
            self._reports[key] = merged(self._reports.get(key, Progress()), report)
        return 200

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds; a client that stalls holds a thread no longer

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal() or int(length) > BODY_LIMIT:
                    self.send_error(413)
                    return
                body = self.rfile.read(int(length))
                status = server.take(self.path, self.headers.get("Authorization", ""), body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Reports come every few seconds; a line for each tells nobody anything."""

        return Handler
