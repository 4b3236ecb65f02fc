"""The Indexed Job: one gang of pods that starts, runs and ends as a whole."""

from __future__ import annotations

from typing import Any, Final

from rlhf_api.job import DEFAULT_IMAGE
from rlhf_api.resources import Resources
from rlhf_api.run import PREPARE, STAGE_FILE

from rlhf_operator.names import pod_host
from rlhf_operator.render.metadata import (
    AttemptKey,
    Object,
    attempt_annotations,
    attempt_labels,
    metadata,
)
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.service import RENDEZVOUS_PORT
from rlhf_operator.render.volumes import (
    TERMINATION_PATH,
    TOKEN_DIRECTORY,
    WORKDIR,
    Placed,
    pod_mounts,
    pod_volumes,
)

GRACE_SECONDS: Final = 120
"""Time to save the whole state after SIGTERM."""
PREPARE_RESOURCES: Final = Resources(nodes=1, gpus_per_node=0, shm_size="1Gi")
USER_ID: Final = 1000
"""The user that the trainer image runs as."""


def resources_of(key: AttemptKey) -> Resources:
    """What the stage asks for; `prepare` needs no devices but the same kind of node selection."""
    spec = key.job.spec
    if key.stage != PREPARE:
        return spec.resources.overridden_by(spec.stages.present()[key.stage].resources)
    asked = spec.resources
    return PREPARE_RESOURCES.model_copy(
        update={"service_account": asked.service_account, "tolerations": asked.tolerations}
    )


def workload(key: AttemptKey, placed: list[Placed], platform: Platform) -> Object:
    """The Job.

    backoffLimit 0: the first pod that fails ends the attempt, and what to do next is the plan's to
    decide. No podFailurePolicy: it could only replace single pods of a gang, which cannot go on
    without the others anyway; exit codes are read from the pods.
    """
    resources = resources_of(key)
    spec: Object = {
        "completionMode": "Indexed",
        "completions": resources.nodes,
        "parallelism": resources.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {"labels": attempt_labels(key), "annotations": attempt_annotations(key)},
            "spec": _pod(key, placed, resources, platform),
        },
    }
    if deadline := _deadline(key):
        spec["activeDeadlineSeconds"] = deadline
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(key), "spec": spec}


def _deadline(key: AttemptKey) -> int | None:
    if key.stage == PREPARE:
        return None
    return key.job.spec.stages.present()[key.stage].retry.deadline_seconds


def _pod(key: AttemptKey, placed: list[Placed], resources: Resources, platform: Platform) -> Object:
    spec: Object = {
        "restartPolicy": "Never",
        "subdomain": key.name,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(key, placed, resources, platform)],
        "volumes": pod_volumes(key, placed, resources.shm_size, platform),
    }
    return spec | _placement(resources)


def _placement(resources: Resources) -> Object:
    """Which nodes the pods may run on; what is unset is left out."""
    placement: dict[str, Any] = {
        "nodeSelector": resources.node_selector,
        "tolerations": [item.to_dict() for item in resources.tolerations or ()],
        "priorityClassName": resources.priority_class,
        "runtimeClassName": resources.runtime_class,
        "serviceAccountName": resources.service_account,
    }
    return {name: value for name, value in placement.items() if value}


def _container(
    key: AttemptKey, placed: list[Placed], resources: Resources, platform: Platform
) -> Object:
    return {
        "name": "trainer",
        "image": key.job.spec.image or DEFAULT_IMAGE,
        "workingDir": WORKDIR,
        "command": _command(key, resources),
        "env": _environment(key, resources, platform),
        "resources": _requests(resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": pod_mounts(key, placed, platform),
    }


def _command(key: AttemptKey, resources: Resources) -> list[str]:
    """Every pod starts its own processes; pod 0 is where they meet.

    JOB_COMPLETION_INDEX is set in each pod by the Job controller.
    """
    if key.stage == PREPARE:
        return ["python", "-m", "rlhf_trainer", "prepare", STAGE_FILE]
    options = {
        "--nnodes": str(resources.nodes),
        "--node-rank": "$(JOB_COMPLETION_INDEX)",
        "--nproc-per-node": str(resources.ranks_per_node),
        "--master-addr": pod_host(key.name, 0),
        "--master-port": str(RENDEZVOUS_PORT),
    }
    flat = [part for pair in options.items() for part in pair]
    return ["python", "-m", "rlhf_trainer", "launch", *flat, STAGE_FILE]


def _environment(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    values = {"TMPDIR": f"{WORKDIR}/tmp", "PYTHONUNBUFFERED": "1"}
    if key.stage != PREPARE:
        values["HF_HUB_OFFLINE"] = "1"  # all was fetched before GPUs were asked for
    if resources.gpus_per_node == 0:
        values["DS_ACCELERATOR"] = "cpu"
    if platform.progress_url:
        values["KUBEFLOW_TRAINER_SERVER_URL"] = progress_address(key, platform.progress_url)
        values["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{WORKDIR}/{TOKEN_DIRECTORY}/token"
    return [{"name": name, "value": value} for name, value in values.items()]


def progress_address(key: AttemptKey, base: str) -> str:
    """Where this attempt reports, and no other."""
    meta = key.job.metadata
    return f"{base}/namespaces/{meta.namespace}/rlhfjobs/{meta.name}/{key.stage}/{key.number}"


def _requests(resources: Resources) -> Object:
    """Devices and memory are requested and limited alike; CPU is requested, and never throttled."""
    devices = {resources.device: resources.gpus_per_node} if resources.gpus_per_node else {}
    memory = {"memory": resources.memory} if resources.memory else {}
    cpu = {"cpu": resources.cpu} if resources.cpu else {}
    limits = {**memory, **devices}
    rendered = {"requests": {**cpu, **limits}, "limits": limits}
    return {name: amounts for name, amounts in rendered.items() if amounts}
