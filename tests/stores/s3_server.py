"""What a client needs of S3: HEAD, GET with ranges, lists, PUT, uploads in parts, DELETE; checked
for credentials. A key that is in `refuse` is neither read nor written, one in `broken` fails as a
server does that is overloaded."""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = 1_700_000_000


class Bucket(ThreadingHTTPServer):
    """Keys and bytes; `asked` are the keys that were read, `put` those that were written, in their
    order; `requests` the method of each request."""

    def __init__(self, files: dict[str, bytes], access_key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.access_key = access_key
        self.asked: list[str] = []
        self.put: list[str] = []
        self.deleted: list[str] = []
        self.requests: list[str] = []
        self.refuse: set[str] = set()
        self.broken: Callable[[str], bool] = lambda key: False
        self.shut: Callable[[str], bool] = lambda key: False
        self.parts: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.uploads = itertools.count()  # several at once

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


def write_keys(folder: Path, server: Bucket, key: str = "KEY") -> None:
    """A Secret for the server as a pod sees it: a folder of files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (keys(server) | {"AWS_ACCESS_KEY_ID": key}).items():
        (folder / name).write_text(value + "\n")


def keys(server: Bucket) -> dict[str, str]:
    """What opens the bucket, by the names of a Secret or of the environment."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
    }


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_PUT(self) -> None:
        content = self._received()
        if (asked := self._asked()) is None:
            return
        key, query = asked
        if key in self.server.refuse:
            self._send(403, _error("AccessDenied"), True)
        elif self.server.broken(key):
            self._send(503, _error("SlowDown"), True)
        elif "partNumber" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = content
            self._send(200, b"", True, {"ETag": f'"{query["partNumber"]}"'})
        else:
            self._store(key, content)
            self._send(200, b"", True, {"ETag": '"whole"'})

    def do_POST(self) -> None:
        content = self._received()
        if (asked := self._asked()) is None:
            return
        key, query = asked
        if "uploads" in query:
            upload = f"upload-{next(self.server.uploads)}"
            self.server.parts[upload] = {}
            self._send(200, _xml("InitiateMultipartUploadResult", UploadId=upload, Key=key), True)
        elif "uploadId" in query:
            parts = self.server.parts.pop(query["uploadId"])
            self._store(key, b"".join(parts[number] for number in sorted(parts)))
            self._send(200, _xml("CompleteMultipartUploadResult", Key=key), True)
        elif self.server.broken(key):
            self._send(503, _error("SlowDown"), True)
        else:  # several keys at once
            for gone in re.findall(r"<Key>(.*?)</Key>", content.decode()):
                self._remove(gone)
            self._send(200, _xml("DeleteResult"), True)

    def do_DELETE(self) -> None:
        if (asked := self._asked()) is not None:
            self._remove(asked[0])
            self._send(204, b"", False)

    def _store(self, key: str, content: bytes) -> None:
        self.server.put.append(key)
        self.server.files[key] = content

    def _remove(self, key: str) -> None:
        self.server.deleted.append(key)
        self.server.files.pop(key, None)

    def _received(self) -> bytes:
        """The body; the SDK sends it in chunks of its own, within those of HTTP."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            return self._chunks(io.BytesIO(body))
        return body

    def _chunks(self, stream: Any) -> bytes:
        found = b""
        while size := int(stream.readline().split(b";")[0], 16):
            found += stream.read(size)
            stream.readline()
        while stream.readline().strip():  # checksums
            pass
        return found

    def _asked(self) -> tuple[str, dict[str, str]] | None:
        """The key and the query; None where the answer was a refusal."""
        self.server.requests.append(self.command)
        parts = urlsplit(self.path)
        name, _, key = unquote(parts.path).lstrip("/").partition("/")
        given = parse_qs(parts.query, keep_blank_values=True)
        query = {name: values[0] for name, values in given.items()}
        is_known = f"Credential={self.server.access_key}/" in self.headers.get("Authorization", "")
        if not is_known or self.server.shut(key):
            self._send(403, _error("AccessDenied"), self.command != "HEAD")
        elif name != "bucket":
            self._send(404, _error("NoSuchBucket"), self.command != "HEAD")
        else:
            return key, query
        return None

    def _answer(self, *, body: bool) -> None:
        if (asked := self._asked()) is None:
            return
        key, query = asked
        if "list-type" in query:
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
    return _xml("Error", Code=code, Message="no")


def _xml(root: str, **fields: str) -> bytes:
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    return f'<?xml version="1.0"?><{root}>{inside}</{root}>'.encode()
