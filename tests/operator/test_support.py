"""What one cluster or one machine cannot give to a job that is valid."""

from __future__ import annotations

from typing import Any

import pytest
from builders import a_job
from rlhf_operator.render import Defaults, Platform
from rlhf_operator.support import unsupported
from test_gang import EVERY, SERVED
from test_render_security import on_a_cluster

MACHINE = Platform(is_one_machine=True)


def told(job: Any, platform: Platform) -> list[str]:
    return [problem.path for problem in unsupported(job.build(), platform)]


def test_paths_of_one_machine_are_for_one_machine() -> None:
    job = a_job().with_spec("stages.dpo.data.source", "pvc://data/pairs.jsonl")
    job.with_spec("stages.sft.data.evalSource", "data/heldout.jsonl")
    assert told(job, MACHINE) == []
    assert told(job, EVERY) == [
        "spec.model",
        "spec.stages.sft.data",
        "spec.stages.sft.data",
        "spec.stages.reward.data",
        "spec.stages.ppo.data",
    ]
    (first, *_) = unsupported(job.build(), EVERY)
    assert "models/base is a path of one machine" in first.message
    assert "pvc://" in first.allowed


def test_images_are_mounted_by_clusters_alone() -> None:
    job = on_a_cluster(model={"source": "oci://registry/base:1"})
    assert told(job, EVERY) == []
    assert told(job, MACHINE) == ["spec.model"]


@pytest.mark.parametrize(
    ("scheduling", "platform", "expected"),
    [
        ({"gang": "volcano"}, EVERY, []),
        ({"gang": "volcano"}, Platform(), []),  # nothing is known of the cluster
        (
            {"gang": "volcano"},
            Platform(served=frozenset([SERVED["kai"]])),
            ["spec.scheduling.gang"],
        ),
        ({"gang": "kueue"}, EVERY, ["spec.scheduling.queue"]),
        ({"gang": "kai"}, EVERY, ["spec.scheduling.queue"]),
        ({"gang": "kueue", "queue": "a"}, EVERY, []),
        ({"gang": "kueue"}, EVERY._replace(defaults=Defaults(queue="shared")), []),
        ({"gang": "auto"}, Platform(served=frozenset(["apps/v1/Deployment"])), []),
        ({"gang": "none"}, Platform(served=frozenset(["apps/v1/Deployment"])), []),
        ({"gang": "kueue"}, MACHINE, []),
    ],
)
def test_a_scheduler_that_is_named_has_to_be_there(
    scheduling: dict[str, str], platform: Platform, expected: list[str]
) -> None:
    job = on_a_cluster(scheduling=scheduling)
    if platform.is_one_machine:
        job.with_spec("model", {"source": "models/base"})
    assert told(job, platform) == expected


def test_what_is_there_instead_is_named() -> None:
    platform = Platform(served=frozenset([SERVED["kai"]]))
    (problem,) = unsupported(on_a_cluster(scheduling={"gang": "volcano"}).build(), platform)
    assert problem.allowed == "auto or none or kai"
