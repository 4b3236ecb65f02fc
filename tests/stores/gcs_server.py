"""What a client needs of Google Cloud Storage to read and write: a token, metadata, lists, media,
uploads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

OBJECTS = "/storage/v1/b/bucket/o"
UPLOADS = "/upload/storage/v1/b/bucket/o"
REFRESH_TOKEN = "refresh"
TOKEN = "ya29.token"


class GoogleBucket(ThreadingHTTPServer):
    """Objects of the one bucket, called bucket."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.begun: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def credentials(self, refresh_token: str = REFRESH_TOKEN) -> str:
        """A credentials.json as `gcloud auth application-default login` writes it."""
        known = {"type": "authorized_user", "client_id": "id", "client_secret": "secret"}
        return json.dumps(
            {**known, "refresh_token": refresh_token, "token_uri": f"{self.url}/token"}
        )


@contextmanager
def google_bucket(files: dict[str, bytes]) -> Iterator[GoogleBucket]:
    """A running server."""
    with GoogleBucket(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: GoogleBucket

    def do_POST(self) -> None:
        if self.path.startswith(UPLOADS):
            self._begin_upload()
        else:
            self._give_token()

    def do_PUT(self) -> None:
        """A piece of an upload, or the end of it."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        piece = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = query["upload_id"]
        begun = self.server.begun[key] = self.server.begun[key] + piece
        if self.headers.get("Content-Range", "*/*").endswith("/*"):
            last = {"Range": f"bytes=0-{len(begun) - 1}"} if begun else {}
            self._send(308, b"", last)
        else:
            self.server.files[key] = self.server.begun.pop(key)
            self._send(200, json.dumps(self._about(key)).encode())

    def do_DELETE(self) -> None:
        key = unquote(urlsplit(self.path).path.removeprefix(f"{OBJECTS}/"))
        found = self.server.files.pop(key, None)
        self._send(404 if found is None else 204, b"")

    def _begin_upload(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": {"code": 401, "message": "Invalid Credentials"}}')
        elif query["uploadType"] == "multipart":
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
            about, content = body.split(b"--" + boundary)[1:3]
            key = json.loads(about.partition(b"\r\n\r\n")[2])["name"]
            self.server.files[key] = content.partition(b"\r\n\r\n")[2][:-2]
            self._send(200, json.dumps(self._about(key)).encode())
        else:
            key = query.get("name") or json.loads(body)["name"]
            self.server.begun[key] = b""
            where = f"{self.server.url}{UPLOADS}?uploadType=resumable&upload_id={quote(key, '')}"
            self._send(200, b"", {"Location": where})

    def _give_token(self) -> None:
        """The exchange of a refresh token for one that opens the bucket."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form["refresh_token"] == [REFRESH_TOKEN]:
            token = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            self._send(200, json.dumps(token).encode())
        else:
            self._send(400, b'{"error": "invalid_grant"}')

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        key = unquote(parts.path.removeprefix(f"{OBJECTS}/"))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": {"code": 401, "message": "Invalid Credentials"}}')
        elif parts.path == OBJECTS:
            found = [k for k in sorted(self.server.files) if k.startswith(query.get("prefix", ""))]
            self._send(200, json.dumps({"items": [self._about(k) for k in found]}).encode())
        elif key not in self.server.files:
            self._send(404, b'{"error": {"code": 404, "message": "No such object"}}')
        elif query.get("alt") == "media":
            self._send(200, self.server.files[key])
        else:
            self._send(200, json.dumps(self._about(key)).encode())

    def _about(self, key: str) -> dict[str, str]:
        time = "2023-11-14T22:13:20Z"
        size = str(len(self.server.files[key]))
        about = {"kind": "storage#object", "id": key, "name": key, "bucket": "bucket"}
        return {**about, "size": size, "generation": "1", "timeCreated": time, "updated": time}

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return None
