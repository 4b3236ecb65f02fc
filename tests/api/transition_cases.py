"""Changes to a job that lives, and which of them are refused."""

from __future__ import annotations

from typing import Any, NamedTuple


class TransitionCase(NamedTuple):
    """Changes to the full manifest before and after, and the field that is told, if any."""

    name: str
    before: dict[str, Any]
    after: dict[str, Any]
    refused: str | None


PLACE = "spec.checkpoints"
TRANSITIONS: list[TransitionCase] = [
    TransitionCase(
        "another claim",
        {"checkpoints.existingClaim": "a"},
        {"checkpoints.existingClaim": "b"},
        f"{PLACE}.existingClaim",
    ),
    TransitionCase(
        "a claim where there was the default",
        {},
        {"checkpoints.existingClaim": "b"},
        f"{PLACE}.existingClaim",
    ),
    TransitionCase("another folder", {"checkpoints.subPath": "a"}, {}, f"{PLACE}.subPath"),
    TransitionCase("the default claim written out", {}, {"checkpoints.claim": {}}, None),
    TransitionCase(
        "another class",
        {"checkpoints.claim": {}},
        {"checkpoints.claim": {"storageClass": "fast"}},
        f"{PLACE}.claim.storageClass",
    ),
    TransitionCase(
        "a class for the default claim",
        {},
        {"checkpoints.claim": {"storageClass": "fast"}},
        f"{PLACE}.claim.storageClass",
    ),
    TransitionCase(
        "another access mode",
        {},
        {"checkpoints.claim": {"accessMode": "ReadWriteOnce"}},
        f"{PLACE}.claim.accessMode",
    ),
    TransitionCase(
        "a larger claim",
        {"checkpoints.claim": {"size": "1Gi"}},
        {"checkpoints.claim": {"size": "1025Mi"}},
        None,
    ),
    TransitionCase(
        "a smaller claim",
        {"checkpoints.claim": {"size": "1G"}},
        {"checkpoints.claim": {"size": "999M"}},
        f"{PLACE}.claim.size",
    ),
    TransitionCase(
        "a claim of fewer bytes",
        {"checkpoints.claim": {"size": 2_000_000}},
        {"checkpoints.claim": {"size": 1_999_999}},
        f"{PLACE}.claim.size",
    ),
    TransitionCase(
        "a claim that stays",
        {},
        {
            "checkpoints.claim": {"retain": False},
            "seed": 7,
            "stages.sft.epochs": 3,
            "suspend": True,
        },
        None,
    ),
]
