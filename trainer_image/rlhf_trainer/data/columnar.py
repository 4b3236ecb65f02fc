"""Parquet and Arrow. A row's line is its number in the file, from 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_trainer.data.json_rows import Found
from rlhf_trainer.errors import BadData

BATCH_ROWS = 1024
ARROW_FILE = b"ARROW1"
"""What an IPC file begins with, and a stream does not."""


def read_parquet(stream: IO[bytes]) -> Iterator[Found]:
    """Apache Parquet."""
    try:
        batches = pq.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS)
        yield from _rows(iter(batches))
    except pa.ArrowException as error:
        raise BadData(f" not a whole Parquet file: {error}") from None


def read_arrow(stream: IO[bytes]) -> Iterator[Found]:
    """Arrow IPC: a stream, as ``datasets`` writes it with save_to_disk, or a file (Feather)."""
    is_file = stream.read(len(ARROW_FILE)) == ARROW_FILE
    stream.seek(0)
    try:
        if is_file:
            file = pa.ipc.open_file(stream)
            yield from _rows(file.get_batch(index) for index in range(file.num_record_batches))
        else:
            yield from _rows(iter(pa.ipc.open_stream(stream)))
    except pa.ArrowException as error:
        raise BadData(f" not a whole Arrow stream or file: {error}") from None


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[Found]:
    line = 0
    for batch in batches:
        for index in range(batch.num_rows):
            line += 1
            yield line, _row(batch, index)


def _row(batch: pa.RecordBatch, index: int) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct all the keys that any row has; absent ones read None."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
