"""What a client needs of S3 to read: HEAD, GET with ranges, and lists, checked for credentials."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MODIFIED = 1_700_000_000


class Bucket(ThreadingHTTPServer):
    """Keys and bytes; `asked` are the keys that were read."""

    def __init__(self, files: dict[str, bytes], access_key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.access_key = access_key
        self.asked: list[str] = []
        self.refuse: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def bucket(files: dict[str, bytes], access_key: str = "KEY") -> Iterator[Bucket]:
    """A server with the one bucket, called bucket."""
    with Bucket(files, access_key) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if f"Credential={self.server.access_key}/" not in self.headers.get("Authorization", ""):
            self._send(403, _error("AccessDenied"), body)
            return
        parts = urlsplit(self.path)
        name, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if name != "bucket":
            self._send(404, _error("NoSuchBucket"), body)
        elif "list-type" in query:
            self._send(200, self._listing(query.get("prefix", ""), query.get("delimiter")), body)
        elif not key:
            self._send(200, b"", body)
        elif key not in self.server.files:
            self._send(404, _error("NoSuchKey"), body)
        else:
            self._send_file(key, body)

    def _send_file(self, key: str, body: bool) -> None:
        content = self.server.files[key]
        if body:
            if key in self.server.refuse:
                self._send(400, _error("InvalidRequest"), body)
                return
            self.server.asked.append(key)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(content) - 1) if last else len(content) - 1
            where = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
            self._send(206, content[int(first) : end + 1], body, where)
        else:
            self._send(200, content, body)

    def _listing(self, prefix: str, delimiter: str | None) -> bytes:
        keys = sorted(key for key in self.server.files if key.startswith(prefix))
        folders: set[str] = set()
        if delimiter:
            tails = {key: key.removeprefix(prefix) for key in keys}
            folders = {
                prefix + tail.split(delimiter)[0] + delimiter
                for tail in tails.values()
                if delimiter in tail
            }
            keys = [key for key in keys if delimiter not in tails[key]]
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.server.files[key])}</Size>"
            f"<LastModified>2023-11-14T22:13:20.000Z</LastModified></Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in folders)
        return (
            '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
            f"<KeyCount>{len(keys) + len(folders)}</KeyCount>{entries}{common}</ListBucketResult>"
        ).encode()

    def _send(
        self, code: int, content: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", formatdate(MODIFIED, usegmt=True))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return None


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
