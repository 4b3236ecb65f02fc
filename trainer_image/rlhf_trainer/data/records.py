"""Encoded rows as bytes, and back, exactly as they were.

A record is the length of its head, the head (JSON: what is no token, and how many tokens and mask
bytes each part has), the tokens of all parts (4 bytes each) and their masks (1 byte each).
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from rlhf_trainer.data.encode import (
    Answer,
    Encoded,
    EncodedLabelled,
    EncodedPreference,
    EncodedPrompt,
    asked_text,
)
from rlhf_trainer.data.examples import Call, Extras, Message, Prompt

HEAD: Final = struct.Struct("<I")
TOKEN_BYTES: Final = array("i").itemsize
KINDS: Final = {
    kind.__name__: kind for kind in (Encoded, EncodedPreference, EncodedLabelled, EncodedPrompt)
}
"""Rows that have a record, by the name of their class."""


class _Part(NamedTuple):
    tokens: Sequence[int]
    mask: Sequence[int] = b""


def to_record(row: Any) -> bytes:
    """A compact row, as `encode_all` gives it. ValueError where it would not come back as it is, as
    where a column holds a date."""
    about, parts = _taken_apart(row)
    lengths = [(len(part.tokens), len(part.mask)) for part in parts]
    try:
        head = json.dumps([about, lengths], separators=(",", ":")).encode()
    except TypeError as error:
        raise ValueError(f"{row.id}: {error}") from None
    tokens = (array("i", part.tokens).tobytes() for part in parts)
    masks = (bytes(part.mask) for part in parts)
    record = b"".join([HEAD.pack(len(head)), head, *tokens, *masks])
    if from_record(type(row).__name__, record) != row:
        raise ValueError(f"{row.id}: a column holds what JSON has no word for")
    return record


def from_record(kind: str, record: bytes) -> Any:
    """The row of a record."""
    (length,) = HEAD.unpack_from(record)
    start = HEAD.size + length
    about, lengths = json.loads(record[HEAD.size : start])
    return _put_together(kind, about, list(_parts(record, start, lengths)))


def _parts(record: bytes, start: int, lengths: Sequence[Sequence[int]]) -> Iterator[_Part]:
    masks = start + TOKEN_BYTES * sum(count for count, _ in lengths)
    for count, masked in lengths:
        tokens = array("i")
        end = start + TOKEN_BYTES * count
        tokens.frombytes(record[start:end])
        yield _Part(tokens, record[masks : masks + masked])
        start, masks = end, masks + masked


def _taken_apart(row: Any) -> tuple[list[Any], list[_Part]]:
    """What is no token; and the tokens with their masks."""
    match row:
        case Encoded():
            return [row.id], [_Part(row.tokens, row.loss_mask)]
        case EncodedPreference():
            parts = [_Part(row.prompt), *(_Part(*answer) for answer in row.answers)]
            return [row.id, row.ranks, row.margin], parts
        case EncodedLabelled():
            return [row.id, row.good], [_Part(row.prompt), _Part(*row.answer)]
        case EncodedPrompt():
            return list(row.asked), [_Part(row.tokens)]
    raise ValueError(f"{type(row).__name__} has no record")


def _put_together(kind: str, about: list[Any], parts: list[_Part]) -> Any:
    name, *rest = about
    match KINDS[kind].__name__:
        case "Encoded":
            return Encoded(name, *parts[0])
        case "EncodedPreference":
            answers = [Answer(*part) for part in parts[1:]]
            return EncodedPreference(name, parts[0].tokens, answers, tuple(rest[0]), rest[1])
        case "EncodedLabelled":
            return EncodedLabelled(name, parts[0].tokens, Answer(*parts[1]), rest[0])
        case _:
            asked = _prompt(name, *rest)
            return EncodedPrompt(asked, parts[0].tokens, asked_text(asked.messages))


def _prompt(name: str, turns: list[Any], row: dict[str, Any], extras: list[Any]) -> Prompt:
    tools, kwargs = extras
    given = Extras(tuple(tools), tuple((key, value) for key, value in kwargs))
    return Prompt(name, tuple(map(_message, turns)), row, given)


def _message(turn: list[Any]) -> Message:
    message = Message(*turn)
    return message._replace(calls=tuple(Call(*call) for call in message.calls))
