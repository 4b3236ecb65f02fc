"""What a refusal of the API server, in its own words, means for the job."""

from __future__ import annotations

import pytest
from rlhf_operator.api import ApiError
from rlhf_operator.controller import Refused
from rlhf_operator.ownership import refusal

JOB = {"kind": "Job", "metadata": {"name": "tiny-sft-1"}}
FORBIDDEN = 'jobs.batch "tiny-sft-1" is forbidden: '


@pytest.mark.parametrize(
    ("code", "reason", "message", "state"),
    [
        (
            500,
            "InternalError",
            'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: '
            'Post "https://kueue.kueue-system.svc:443/mutate": dial tcp: connection refused',
            ("Reconciling", "WebhookFailed"),
        ),
        (403, "Forbidden", f"{FORBIDDEN}exceeded quota: few", ("Reconciling", "QuotaExceeded")),
        (
            403,
            "Forbidden",
            f"{FORBIDDEN}status unknown for quota: few, resources: count/jobs.batch",
            ("Reconciling", "QuotaExceeded"),
        ),
        (
            403,
            "Forbidden",
            f"{FORBIDDEN}unable to create in namespace a because it is being terminated",
            ("Reconciling", "NamespaceTerminating"),
        ),
        (403, "Forbidden", f"{FORBIDDEN}User cannot create jobs", ("Stalled", "Forbidden")),
        (400, "BadRequest", 'admission webhook "x" denied it', ("Stalled", "ChildRefused")),
    ],
)
def test_a_refusal_that_lasts_becomes_a_condition(
    code: int, reason: str, message: str, state: tuple[str, str]
) -> None:
    found = refusal(ApiError(code, reason, message), JOB)
    assert isinstance(found, Refused)
    assert found.state[:2] == state
    assert message[:40] in found.state.message


@pytest.mark.parametrize("code", [0, 429, 500, 503])
def test_what_passes_is_tried_again_at_once_and_told_to_nobody(code: int) -> None:
    error = ApiError(code, "ServerTimeout", "not now")
    assert refusal(error, JOB) is error
