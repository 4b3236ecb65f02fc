"""JSON Lines and JSON, read as a stream and with the line of each row.

``json`` alone knows neither the line at which an element of an array starts nor how to go on
after a broken line, and would hold a 100 MB line in memory before it looked at it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any, Final

from rlhf_trainer.errors import BadData

MAX_ROW_BYTES: Final = 32 * 1024 * 1024
"""A row above this is no dialogue but a file without newlines."""

CHUNK: Final = 1 << 20

Found = tuple[int, dict[str, Any] | str]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unrepeated(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice the first value would be lost."""
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{again}` stands twice in one object")
    return found


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unrepeated)


def read_lines(stream: IO[bytes]) -> Iterator[Found]:
    """JSON Lines: one object a line."""
    for line, raw in numbered_lines(stream):
        if isinstance(raw, str):
            yield line, raw
        elif raw.strip():
            yield line, _object(raw)


def numbered_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | str]]:
    """Lines with their numbers from 1, without byte order mark; too long ones as a reason."""
    line = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        line += 1
        if line == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            _refuse_utf16(raw)
        if len(raw) > MAX_ROW_BYTES:
            yield line, f"the line is longer than {MAX_ROW_BYTES >> 20} MiB"
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(CHUNK)
        else:
            yield line, raw


def _refuse_utf16(raw: bytes) -> None:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadData("1: the file is UTF-16; save it as UTF-8")


def _object(raw: bytes) -> dict[str, Any] | str:
    """The object in one line, or why there is none."""
    text = decoded(raw)
    if text is None:
        return "invalid UTF-8"
    if "\x00" in text:
        return "the line holds a NUL byte"
    try:
        value = _DECODER.decode(text.rstrip("\r\n"))  # or a cut row is bad at column 1 of the next
    except json.JSONDecodeError as error:
        cut = "" if raw.endswith(b"\n") else "the file ends in the middle of a row: "
        return f"{cut}bad JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return f"bad JSON: {error}"
    return value if isinstance(value, dict) else _no_object(value)


def decoded(raw: bytes) -> str | None:
    """The bytes as UTF-8, or None."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _no_object(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return f"the row is {names.get(type(value), 'a number')}, not an object with columns"


def read_json(stream: IO[bytes]) -> Iterator[Found]:
    """JSON: an array of objects, or objects one after the other (one a line, or over several)."""
    per_line = _is_object_per_line(stream)
    stream.seek(0)
    yield from read_lines(stream) if per_line else _elements(_Text(stream))


def _is_object_per_line(stream: IO[bytes]) -> bool:
    """Whether the first line is a whole object, so that a broken line can be told from the next."""
    first = next((raw for _, raw in numbered_lines(stream) if raw.strip()), b"")
    return isinstance(first, bytes) and isinstance(_object(first), dict)


class _Text:
    """A window on the decoded stream, with the line number of its position."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._next = CHUNK
        self.text = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> None:
        """Read on. Twice as much each time, or a long row would be parsed again and again."""
        if len(self.text) - self.position > MAX_ROW_BYTES:
            raise BadData(f"{self.line}: the row is longer than {MAX_ROW_BYTES >> 20} MiB")
        raw = self._stream.read(self._next)
        self._next = min(2 * self._next, MAX_ROW_BYTES)
        try:
            fresh = self._decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            start = error.start
            line = self.line + self.text.count("\n", self.position) + raw[:start].count(b"\n")
            raise BadData(f"{line}: invalid UTF-8") from None
        if "\x00" in fresh:
            line = self.line + self.text.count("\n", self.position)
            line += fresh.count("\n", 0, fresh.index("\x00"))
            raise BadData(f"{line}: the file holds a NUL byte")
        self.text = self.text[self.position :] + fresh
        self.position = 0
        self.ended = not raw

    def advance(self, position: int) -> None:
        """Move on; after a row is done, the next read is small again."""
        self.line += self.text.count("\n", self.position, position)
        self.position = position
        self._next = CHUNK

    def peek(self) -> str:
        """The next character that is not white space, or '' at the end."""
        while True:
            rest = self.position
            while rest < len(self.text) and self.text[rest] in " \t\r\n":
                rest += 1
            self.advance(rest)
            if rest < len(self.text) or self.ended:
                return self.text[rest : rest + 1]
            self.more()

    def value(self) -> Any:
        """The JSON value at the position; raises BadData with its line."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if not self.ended:
                    self.more()
                    continue
                raise BadData(self._broken(error)) from None
            except (ValueError, RecursionError) as error:
                raise BadData(f"{self.line}: bad JSON: {error}") from None
            if end == len(self.text) and not self.ended:
                self.more()  # a number may go on
                continue
            self.advance(end)
            return value

    def _broken(self, error: json.JSONDecodeError) -> str:
        line = self.line + self.text.count("\n", self.position, error.pos)
        if error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated"):
            return f"{self.line}: the file ends in the middle of the row that starts here"
        return f"{line}: bad JSON: {error.msg} (the row starts at line {self.line})"


def _elements(text: _Text) -> Iterator[Found]:
    """The elements of one array, or values one after the other.

    After a syntax error nobody knows where the next row begins, so that it ends the reading even
    where bad rows may be skipped.
    """
    in_array = text.peek() == "["
    if in_array:
        text.advance(text.position + 1)
    while (char := text.peek()) and not (in_array and char == "]"):
        line = text.line
        value = text.value()
        yield line, value if isinstance(value, dict) else _no_object(value)
        if in_array:
            _comma(text)
    if in_array:
        _end(text)


def _comma(text: _Text) -> None:
    char = text.peek()
    if char == ",":
        text.advance(text.position + 1)
        if text.peek() == "]":
            raise BadData(f"{text.line}: bad JSON: a comma before the closing ]")
    elif char and char != "]":
        raise BadData(f"{text.line}: bad JSON: a comma is missing before this row")


def _end(text: _Text) -> None:
    if text.peek() != "]":
        raise BadData(f"{text.line}: the file ends before the array is closed with ]")
    text.advance(text.position + 1)
    if text.peek():
        raise BadData(f"{text.line}: something follows the closing ] of the array")
