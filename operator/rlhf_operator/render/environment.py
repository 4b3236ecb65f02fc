"""Environment variables of a pod: what follows from its devices, the user's, ours. Ours win."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from rlhf_api.pods import EnvVar
from rlhf_api.resources import RDMA, Resources
from rlhf_api.run import DEVICES, PREPARE, STAGE_FILE, WORKDIR

from rlhf_operator.names import COMPLETION_INDEX, pod_host
from rlhf_operator.render.config import AUTHORITY_NAME
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.security import NO_DEVICES
from rlhf_operator.render.service import RENDEZVOUS_PORT
from rlhf_operator.render.volumes import FETCHED, TOKEN_DIRECTORY

EFA: Final = "vpc.amazonaws.com/efa"

Variables = dict[str, Object]
"""What follows a variable's name: its value, or where it is."""


def environment(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    """The variables of an attempt's pods, each name once."""
    variables = {
        **_network(resources.rdma, platform),
        **_users(key, platform),
        **_values(_process(key, platform)),
        **_values(_stage(key, resources, platform)),
        **(_rendezvous(key, resources) if _is_foreign(key) else {}),
        **_values(_progress(key, platform)),
    }
    return [{"name": name, **source} for name, source in variables.items()]


def _values(values: dict[str, str]) -> Variables:
    return {name: {"value": value} for name, value in values.items()}


def _network(rdma: RDMA | None, platform: Platform) -> Variables:
    """NCCL must use what was asked for: without it, it would fall back to TCP and say nothing.

    https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html. Ranks find each other over
    the pod's own interface, which the container runtime names eth0. No IPC_LOCK: a capability that
    is added to a container reaches no process of another user than root (docs/adr/0007).
    """
    if rdma is None or platform.is_one_machine:
        return {}
    fabric = {"FI_PROVIDER": "efa"} if rdma.resource == EFA else {"NCCL_NET": "IB"}
    return _values({**fabric, "NCCL_SOCKET_IFNAME": "eth0"})


def _users(key: AttemptKey, platform: Platform) -> Variables:
    """The job's, then the stage's. On one machine, what a Secret would hold is in the shell."""
    asked = [*key.job.spec.env]
    if key.stage != PREPARE:
        asked += key.job.spec.stages.present()[key.stage].env
    return {
        item.name: _source(item)
        for item in asked
        if not (item.value_from and platform.is_one_machine)
    }


def _source(item: EnvVar) -> Object:
    if item.value_from:
        return {"valueFrom": item.value_from.to_dict()}
    return {"value": item.value or ""}


def _process(key: AttemptKey, platform: Platform) -> dict[str, str]:
    """The root file system is read-only: caches go where the temporary files are.

    What `prepare` downloads may be larger than that; a broken-off try is taken up from there.
    """
    common = {"TMPDIR": f"{WORKDIR}/tmp", "PYTHONUNBUFFERED": "1"}
    if platform.is_one_machine:
        return common
    hub = {"HF_HOME": f"{WORKDIR}/{FETCHED}/.cache"} if key.stage == PREPARE else {}
    return {**common, "HOME": f"{WORKDIR}/tmp", **hub}


def _stage(key: AttemptKey, resources: Resources, platform: Platform) -> dict[str, str]:
    """Training is offline: all was fetched before GPUs were asked for."""
    offline = {"HF_HUB_OFFLINE": "1"} if key.stage != PREPARE else {}
    if devices := resources.gpus_per_node:
        return offline | {DEVICES: str(devices)}
    on_cpus = {} if platform.is_one_machine else NO_DEVICES
    return offline | {"DS_ACCELERATOR": "cpu"} | on_cpus


def _is_foreign(key: AttemptKey) -> bool:
    return key.stage != PREPARE and bool(key.job.spec.stages.present()[key.stage].command)


def _rendezvous(key: AttemptKey, resources: Resources) -> Variables:
    """For a trainer that is not ours: torchrun's own options, by the names it reads them from.

    The rank is read from the annotation, as JOB_COMPLETION_INDEX is appended after all of these.
    """
    fixed = {
        "PET_NNODES": str(resources.nodes),
        "PET_NPROC_PER_NODE": str(resources.ranks_per_node),
        "PET_MASTER_ADDR": pod_host(key.name, 0),
        "PET_MASTER_PORT": str(RENDEZVOUS_PORT),
    }
    rank = {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}}
    return {**_values(fixed), "PET_NODE_RANK": rank}


def _progress(key: AttemptKey, platform: Platform) -> dict[str, str]:
    if not platform.progress_url:
        return {}
    authority = f"{WORKDIR}/{PurePosixPath(STAGE_FILE).with_name(AUTHORITY_NAME)}"
    return {
        "KUBEFLOW_TRAINER_SERVER_URL": progress_address(key, platform.progress_url),
        "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{WORKDIR}/{TOKEN_DIRECTORY}/token",
        **({"KUBEFLOW_TRAINER_SERVER_CA_CERT": authority} if platform.progress_authority else {}),
    }


def progress_address(key: AttemptKey, base: str) -> str:
    """Where this attempt reports, and no other."""
    meta = key.job.metadata
    return f"{base}/namespaces/{meta.namespace}/rlhfjobs/{meta.name}/{key.stage}/{key.number}"
