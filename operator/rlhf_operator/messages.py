"""The one point that all text from pods passes on its way to status and events."""

from __future__ import annotations

import re
from typing import Final

LIMIT: Final = 1024
"""Bytes; what a condition or an event holds."""

SECRETS: Final = re.compile(
    r"hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|(?<=Bearer )\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=token=)|(?<=password=)|(?<=secret=))[^\s&]+"
)
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys, and what has text read in another order than it stands."""
WORD_LIMIT: Final = 128
NO_WORD: Final = re.compile(r"[^A-Za-z0-9_]")


def redacted(text: str, limit: int = LIMIT) -> str:
    """The text without credentials and control characters, cut to `limit` bytes, its end kept.

    The end is kept because the cause of a failure stands in a log's last lines.
    """
    clean = SECRETS.sub("[redacted]", CONTROL.sub("", text)).strip()
    raw = clean.encode()
    return clean if len(raw) <= limit else "…" + raw[-(limit - 3) :].decode(errors="ignore")


def plain_word(text: str) -> str:
    """A reason as programs take it: letters, digits, underscores."""
    return NO_WORD.sub("", text)[:WORD_LIMIT] or "Error"


def plain_name(text: str) -> str:
    """A metric's name that a terminal can show."""
    return "".join(letter for letter in text if letter.isprintable())[:WORD_LIMIT]
