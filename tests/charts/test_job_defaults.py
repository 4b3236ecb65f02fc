"""`jobDefaults` from the chart's values to a job's pods: open fields are filled, own ones win."""

from __future__ import annotations

from typing import Any

import pytest
from builders import JobBuilder, a_job
from chart import Helm
from rendering import Objects, container, pod, rendered
from rlhf_api.job import RLHFJob
from rlhf_operator.inputs import input_hash, prepare_hash
from rlhf_operator.render import Platform
from rlhf_operator.render.gang import gang_choice
from rlhf_operator.settings import parse

TAINT = {"key": "nvidia.com/gpu", "operator": "Exists"}
VALUES: dict[str, Any] = {
    "image": "registry.example/trainer:2",
    "gangSchedulers": ["kueue"],
    "queue": "shared",
    "storageClass": "fast",
    "nodeSelector": {"nvidia.com/gpu.present": "true", "pool": "gpu"},
    "tolerations": [TAINT],
}
SERVED = frozenset({"kueue.x-k8s.io/v1beta1/Workload", "scheduling.k8s.io/v1alpha2/PodGroup"})
NAMED: dict[str, Any] = {
    "scheduling": {"queue": "shared"},
    "checkpoints": {"claim": {"storageClass": "fast"}},
    "resources": {
        "gpusPerNode": 8,
        "nodeSelector": VALUES["nodeSelector"],
        "tolerations": VALUES["tolerations"],
    },
}
"""What the cluster's defaults say, written down in a job: all but the image."""
QUEUE = "kueue.x-k8s.io/queue-name"


@pytest.fixture(scope="module")
def platform(helm: Helm) -> Platform:
    """The cluster as the operator sees it with the flags that the chart gives."""
    settings = parse(helm.render({"jobDefaults": VALUES}).args, {})
    return Platform(served=SERVED, gang_order=settings.gang_order, defaults=settings.defaults)


def job(**spec: Any) -> JobBuilder:
    made = a_job().with_spec("resources", {"gpusPerNode": 8})
    for name, value in spec.items():
        made.with_spec(name, value)
    return made


def seen(objects: Objects) -> dict[str, Any]:
    """What defaults can decide on."""
    return {
        "image": container(objects)["image"],
        "queue": objects["Job"]["metadata"]["labels"].get(QUEUE),
        "storageClass": objects["PersistentVolumeClaim"]["spec"]["storageClassName"],
        "nodeSelector": pod(objects)["nodeSelector"],
        "tolerations": pod(objects)["tolerations"],
    }


def hashes(built: RLHFJob) -> dict[str, str]:
    """Of `prepare` and of each stage."""
    found = {"prepare": prepare_hash(built, {})}
    for stage in built.spec.stages.present():
        found[stage] = input_hash(built, stage, {}, found)
    return found


def test_a_job_that_says_nothing_gets_what_the_chart_was_told(platform: Platform) -> None:
    assert gang_choice(job().build().spec.scheduling, platform).name == "kueue"
    filled = {name: value for name, value in VALUES.items() if name != "gangSchedulers"}
    assert seen(rendered("ppo", job(), platform)) == filled


def test_a_jobs_own_fields_win(platform: Platform) -> None:
    own = job(
        image="own:1",
        scheduling={"gang": "native", "queue": "mine"},
        checkpoints={"claim": {"storageClass": "slow"}},
        resources={"gpusPerNode": 8, "nodeSelector": {"pool": "spot"}},
    )
    assert gang_choice(own.build().spec.scheduling, platform).name == "native"
    assert seen(rendered("ppo", own, platform)) == {
        "image": "own:1",
        "queue": None,
        "storageClass": "slow",
        "nodeSelector": {"nvidia.com/gpu.present": "true", "pool": "spot"},
        "tolerations": [TAINT],
    }


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_job_that_names_the_defaults_gets_the_very_objects(
    stage: str, platform: Platform
) -> None:
    open_fields, named = job(), job(image=VALUES["image"], **NAMED)
    assert rendered(stage, named, platform) == rendered(stage, open_fields, platform)


def test_a_job_that_names_the_defaults_trains_nothing_again() -> None:
    assert hashes(job(**NAMED).build()) == hashes(job().build())
