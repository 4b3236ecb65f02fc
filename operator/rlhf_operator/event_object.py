"""An event as the API server keeps it."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from rlhf_api.job import KIND

from rlhf_operator.api import Object
from rlhf_operator.events import Event

NOTE_LIMIT: Final = 1024
"""Bytes of an event's text that the API server accepts."""


def event_object(
    manifest: Object, event: Event, place: int, instance: str, now: datetime
) -> Object:
    """Named after the write that it tells of, so that a repeated one is the same event; the reason
    tells what is said of a write from what is said of the next one, which is refused.

    By name, events come in the order in which they happened: `kubectl describe` shows them so.
    """
    meta = manifest["metadata"]
    origin = f"{meta['uid']}/{meta['resourceVersion']}/{place}/{event.reason}"
    written, digest = meta["resourceVersion"].zfill(20), hashlib.sha256(origin.encode()).hexdigest()
    name = f"{meta['name']}.{written}.{place:03}.{digest[:8]}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta["namespace"]},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": "rlhf.dev/operator",
        "reportingInstance": instance[:128],
        "action": event.stage or "Job",
        "reason": event.reason[:128],
        "type": event.type,
        "note": event.message.encode()[:NOTE_LIMIT].decode(errors="ignore"),
        "regarding": {
            "apiVersion": manifest["apiVersion"],
            "kind": KIND,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
    }
