"""What is read from the API server's audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.request_log import Request, read_requests


def event(user: str, verb: str, code: int, **asked: str) -> dict[str, Any]:
    answer = {"responseStatus": {"code": code}}
    return {"user": {"username": user}, "verb": verb, "objectRef": asked, **answer}


def test_an_accounts_requests_are_told_from_those_of_others(tmp_path: Path) -> None:
    own = "system:serviceaccount:team:operator"
    pods = {"resource": "pods", "namespace": "team"}
    status = {"resource": "rlhfjobs", "apiGroup": "rlhf.dev", "subresource": "status"}
    events = [
        event(own, "list", 200, **pods),
        event(f"{own}-2", "list", 200, **pods),
        event(own, "update", 409, **status),
        {"user": {"username": own}, "verb": "get", "requestURI": "/apis"},
    ]
    log = tmp_path / "audit.log"
    log.write_text("".join(json.dumps(line) + "\n" for line in events))
    assert read_requests(log, "operator", "team") == [
        Request("list", "", "pods", "team", 200),
        Request("update", "rlhf.dev", "rlhfjobs/status", "", 409),
        Request("get", "", "", "", 0),
    ]


def test_the_control_plane_notes_what_an_account_asks_for_and_is_not_given(
    control_plane: ControlPlane, namespace: str
) -> None:
    words = ("get", "pods", "-n", namespace)
    kubeconfig = control_plane.kubeconfig_for("default", namespace)
    control_plane.kubectl("--kubeconfig", str(kubeconfig), *words, check=False)
    asked = [item for item in control_plane.requests_of("default", namespace) if item.resource]
    assert asked == [Request("list", "", "pods", namespace, 403)]
