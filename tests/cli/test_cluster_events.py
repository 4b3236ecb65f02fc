"""Events as users are told them."""

from __future__ import annotations

from rlhf_cli.targets.cluster_events import happening


def test_an_event_that_anybody_wrote_moves_no_cursor_and_turns_no_text() -> None:
    about = {"kind": "Pod", "name": "tiny-sft-1-0-abcde"}
    message = "two\nlines\t\x1b[2J\x9b31m 数据 \u202eeli.gnp"
    time = "2026-01-05T10:00:00Z"
    told = happening(
        {"involvedObject": about, "reason": "Odd\x1b", "message": message, "lastTimestamp": time},
        "tiny",
    )
    assert (told.message, told.reason) == ("two\nlines\t�[2J�31m 数据 �eli.gnp", "Odd�")
