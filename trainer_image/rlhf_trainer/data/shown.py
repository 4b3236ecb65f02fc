"""Whether a text shows a value, in whatever notation a template writes it."""

from __future__ import annotations

import json
from typing import Any

from rlhf_trainer.data.examples import Call


def closed_up(text: str) -> str:
    """Without white space, which templates set as they like."""
    return "".join(text.split())


def shows(said: str, value: Any) -> bool:
    """Whether all names and values stand in a text that is closed up, in whatever notation: as they
    are, or as JSON, or as JSON in JSON."""
    if isinstance(value, dict):
        return all(shows(said, item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(shows(said, item) for item in value)
    if not isinstance(value, str):
        return str(value) in said or json.dumps(value) in said
    once = json.dumps(value, ensure_ascii=False)[1:-1]
    twice = json.dumps(once, ensure_ascii=False)[1:-1]
    return any(closed_up(way) in said for way in (value, once, twice, json.dumps(value)[1:-1]))


def shows_call(said: str, call: Call) -> bool:
    """Whether a call is all there in a text that is closed up."""
    return shows(said, call.name) and shows(said, json.loads(call.arguments))
