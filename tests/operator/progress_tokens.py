"""Tokens and pods as a cluster makes them, for tests of the progress server."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

AUDIENCE = "rlhf.dev/progress"
UID = "11111111-2222-4333-8444-555555555555"


def a_token(
    namespace: str = "default",
    pod: str = "tiny-ppo-3-0-x7k2p",
    uid: str = UID,
    *,
    signature: str = "genuine",
    **changes: Any,
) -> str:
    """A token of a pod; `changes` replace claims, None leaves one out."""
    claims = {
        "aud": [AUDIENCE],
        "exp": int(time.time()) + 3600,
        "iss": "https://kubernetes.default.svc",
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": pod, "uid": uid},
            "serviceaccount": {"name": "default", "uid": "99"},
        },
        "sub": f"system:serviceaccount:{namespace}:default",
    } | changes
    parts = [{"alg": "RS256"}, {name: value for name, value in claims.items() if value is not None}]
    encoded = [_encoded(json.dumps(part).encode()) for part in parts]
    return ".".join([*encoded, _encoded(signature.encode())])


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def the_review(token: str) -> dict[str, Any]:
    """The answer to a TokenReview, for tokens whose signature says that they are genuine."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if token.split(".")[2] != _encoded(b"genuine"):
        return {"status": {"user": {}, "error": "invalid bearer token"}}
    bound = claims["kubernetes.io"]
    extra = {
        "authentication.kubernetes.io/pod-name": [bound["pod"]["name"]],
        "authentication.kubernetes.io/pod-uid": [bound["pod"]["uid"]],
        "authentication.kubernetes.io/credential-id": ["JTI=1"],
    }
    user = {"username": claims["sub"], "uid": "99", "groups": [], "extra": extra}
    return {"status": {"authenticated": True, "user": user, "audiences": claims["aud"]}}


def a_pod(job: str = "tiny", stage: str = "ppo", attempt: int = 3) -> dict[str, Any]:
    """A pod of an attempt."""
    name = f"{job}-{stage}-{attempt}"
    return {
        "metadata": {
            "name": f"{name}-0-x7k2p",
            "namespace": "default",
            "uid": UID,
            "labels": {
                "rlhf.dev/job": job,
                "rlhf.dev/stage": stage,
                "rlhf.dev/attempt": str(attempt),
            },
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "j1"}
                | {"controller": True}
            ],
        }
    }


def a_child(job: str = "tiny", stage: str = "ppo", attempt: int = 3) -> dict[str, Any]:
    """The batch Job of an attempt."""
    owner = {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "name": job, "uid": "r1"}
    return {
        "metadata": {
            "name": f"{job}-{stage}-{attempt}",
            "namespace": "default",
            "uid": "j1",
            "ownerReferences": [owner | {"controller": True}],
        }
    }
