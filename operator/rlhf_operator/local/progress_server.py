"""Takes the reports of the trainers on one machine."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhf_operator.observed import Progress
from rlhf_operator.progress import BODY_LIMIT, merged, parse_report


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
