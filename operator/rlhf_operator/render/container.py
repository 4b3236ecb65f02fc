"""The one container of a pod: image, command, devices, mounts."""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources
from rlhf_api.run import PREPARE, STAGE_FILE, WORKDIR

from rlhf_operator.names import CONTAINER_NAME, pod_host
from rlhf_operator.render.environment import environment
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.security import container_security
from rlhf_operator.render.service import RENDEZVOUS_PORT
from rlhf_operator.render.volumes import TERMINATION_PATH, Contents, pod_mounts

DEVICES: Final = "devices"
"""Name, within the pod, of the claim for devices that dynamic resource allocation gives."""


def container(
    key: AttemptKey, contents: Contents, resources: Resources, platform: Platform
) -> Object:
    """The trainer's container; it meets the restricted Pod Security Standard."""
    pull_policy = key.job.spec.image_pull_policy
    return {
        "name": CONTAINER_NAME,
        "image": _image(key),
        **({"imagePullPolicy": pull_policy} if pull_policy else {}),
        "workingDir": WORKDIR,
        "command": _command(key, resources),
        "env": environment(key, resources, platform),
        "resources": _requests(key, resources),
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": pod_mounts(key, contents, platform),
    }


def _image(key: AttemptKey) -> str | None:
    spec = key.job.spec
    own = spec.stages.present()[key.stage].image if key.stage != PREPARE else None
    return own or spec.image


def _command(key: AttemptKey, resources: Resources) -> list[str]:
    """Every pod starts its own processes; pod 0 is where they meet.

    JOB_COMPLETION_INDEX is set in each pod by the Job controller.
    """
    if key.stage == PREPARE:
        return ["python", "-m", "rlhf_trainer", "prepare", STAGE_FILE]
    if foreign := key.job.spec.stages.present()[key.stage].command:
        return list(foreign)
    options = {
        "--nnodes": str(resources.nodes),
        "--node-rank": "$(JOB_COMPLETION_INDEX)",
        "--nproc-per-node": str(resources.ranks_per_node),
        "--master-addr": pod_host(key.name, 0),
        "--master-port": str(RENDEZVOUS_PORT),
    }
    flat = [part for pair in options.items() for part in pair]
    return ["python", "-m", "rlhf_trainer", "launch", *flat, STAGE_FILE]


def _requests(key: AttemptKey, resources: Resources) -> Object:
    """Devices and memory are requested and limited alike; CPU is requested, and never throttled.

    So is the node's disk, where the user says how much a training pod's copy may take of it.
    """
    limits = {**_memory(resources), **extended_resources(resources)}
    cpu = {"cpu": resources.cpu} if resources.cpu is not None else {}
    claims = [{"name": DEVICES}] if resources.device_claim_template else []
    room = key.job.spec.checkpoints.local_size if key.stage != PREPARE else None
    disk = {"ephemeral-storage": room} if room is not None else {}
    rendered = {"requests": {**cpu, **limits, **disk}, "limits": limits, "claims": claims}
    return {name: amounts for name, amounts in rendered.items() if amounts}


def _memory(resources: Resources) -> Object:
    return {"memory": resources.memory} if resources.memory is not None else {}


def extended_resources(resources: Resources) -> dict[str, int]:
    """Devices of one pod by resource name; those of a claim template have no name here."""
    found: dict[str, int] = {}
    if resources.gpus_per_node and not resources.device_claim_template:
        found[resources.device] = resources.gpus_per_node
    if resources.rdma:
        found[resources.rdma.resource] = resources.rdma.count
    return found
