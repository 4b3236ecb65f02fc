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
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def redacted(text: str, limit: int = LIMIT) -> str:
    """The text without credentials and control characters, cut to `limit` bytes, its end kept.

    The end is kept because the cause of a failure stands in a log's last lines.
    """
    clean = SECRETS.sub("[redacted]", CONTROL.sub("", text)).strip()
    raw = clean.encode()
    return clean if len(raw) <= limit else "…" + raw[-(limit - 3) :].decode(errors="ignore")
