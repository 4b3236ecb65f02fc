"""What service accounts have asked the API server for, from its audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    """One that was answered, or whose answer has begun."""

    verb: str
    group: str
    resource: str  # with its subresource, as in a role: `rlhfjobs/status`; empty for other paths
    namespace: str
    code: int


def read_requests(log: Path, service_account: str, namespace: str) -> list[Request]:
    """Those of one account, in the order of their answers."""
    user = f"system:serviceaccount:{namespace}:{service_account}"
    lines = log.read_text(encoding="utf-8").splitlines()
    events = (json.loads(line) for line in lines if f'"{user}"' in line)
    return [_request(event) for event in events if event["user"]["username"] == user]


def _request(event: dict[str, object]) -> Request:
    asked: dict[str, str] = dict(event.get("objectRef") or {})  # type: ignore[call-overload]
    code = dict(event.get("responseStatus") or {}).get("code", 0)  # type: ignore[call-overload]
    names = [asked.get("resource", ""), asked.get("subresource", "")]
    return Request(
        verb=str(event["verb"]),
        group=asked.get("apiGroup", ""),
        resource="/".join(filter(None, names)),
        namespace=asked.get("namespace", ""),
        code=code,
    )
