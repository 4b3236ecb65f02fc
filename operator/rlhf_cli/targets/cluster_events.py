"""Events of the API server in one form, whichever of its two APIs they were written with."""

from __future__ import annotations

from rlhf_cli.targets.target import Happening, Object


def happening(item: Object, job: str) -> Happening:
    """The newest time at which it happened counts."""
    regarding = item["involvedObject"]
    series = item.get("series") or {}
    time = (
        series.get("lastObservedTime")
        or item.get("lastTimestamp")
        or item.get("eventTime")
        or item["metadata"]["creationTimestamp"]
    )
    about = "" if regarding["kind"] == "RLHFJob" else regarding.get("name", "")
    return Happening(
        time=time,
        type=item.get("type") or "Normal",
        reason=item.get("reason") or "",
        message=(item.get("message") or "").strip(),
        about=about,
        times=series.get("count") or item.get("count") or 1,
    )
