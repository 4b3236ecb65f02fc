"""CSV, TSV and plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from rlhf_trainer.data.json_rows import MAX_ROW_BYTES, Found, numbered_lines
from rlhf_trainer.errors import BadData


def read_csv(stream: IO[bytes]) -> Iterator[Found]:
    """Comma-separated values with a header line (RFC 4180), or as Excel writes them where the comma
    is decimal, with semicolons."""
    return _delimited(stream, ",")


def read_tsv(stream: IO[bytes]) -> Iterator[Found]:
    """As CSV, with tabs."""
    return _delimited(stream, "\t")


def read_text(stream: IO[bytes]) -> Iterator[Found]:
    """Each line that is not blank is a row with the one column ``text``."""
    for line, raw in numbered_lines(stream):
        if isinstance(raw, str):
            yield line, raw
        elif raw.strip():
            text = raw.rstrip(b"\r\n").decode(errors="surrogateescape")
            yield line, {"text": text}


def _delimited(stream: IO[bytes], delimiter: str) -> Iterator[Found]:
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _lines(stream)
    first = next(lines, "")
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header = _next(reader)
    if header is None:
        return
    if len(set(header)) != len(header) or not all(header):
        raise BadData(f"1: the header has blank or repeated columns: {', '.join(header)}")
    while True:
        line = reader.line_num + 1
        cells = _next(reader)
        if cells is None:
            return
        if not cells:
            continue  # an empty line
        if len(cells) != len(header):
            yield line, f"{len(cells)} cells under {len(header)} columns"
        else:
            yield line, dict(zip(header, map(_cell, cells), strict=True))


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as text. Bytes that are not UTF-8 survive as surrogates: then the row that holds them
    is refused, and the rows around it stay in step. CRLF is the file's way to end a line, inside
    quotes too, and reads as a newline."""
    for line, raw in numbered_lines(stream):
        if isinstance(raw, str):
            raise BadData(f"{line}: {raw}")
        if raw.endswith(b"\r\n"):
            raw = raw[:-2] + b"\n"
        yield raw.decode(errors="surrogateescape")


def _next(reader: Any) -> list[str] | None:
    start = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise BadData(f"{start}: bad CSV in the row that starts here: {error}") from None


def _cell(text: str) -> Any:
    """Lists (of messages, of answers) stand in a cell as JSON; all else is text."""
    if text[:2] in ("[{", '["', "[[", "[]") and text.endswith("]"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
