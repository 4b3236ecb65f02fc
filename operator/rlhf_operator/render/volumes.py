"""Where sources and checkpoints appear in a pod, and the volumes that bring them there.

All paths are relative to the working directory; the same path serves a container and a directory
with links on one machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.run import TERMINATION_LOG, WORKDIR
from rlhf_api.sources import SourceRef, uris

from rlhf_operator.names import SHORT_HASH, claim_name
from rlhf_operator.render.metadata import AttemptKey, Object, job_labels, owner_references
from rlhf_operator.render.platform import PROGRESS_AUDIENCE, Platform
from rlhf_operator.render.secrets import Mounted

CHECKPOINTS: Final = "checkpoints"
FETCHED: Final = f"{CHECKPOINTS}/sources"
"""Where `prepare` puts what is remote; jobs that share the volume share it."""
TOKEN_DIRECTORY: Final = "token"
TMP_SIZE: Final = "16Gi"
LOCAL_SIZE: Final = "500Gi"
REMOTE: Final = ("hf", "s3", "gs")


class Placed(NamedTuple):
    """One address and where it is found in the pod."""

    address: str  # as the user wrote it
    path: str  # relative to the working directory
    volume: Object | None = None  # None: below the checkpoint volume
    mount: Object | None = None


class Contents(NamedTuple):
    """What an attempt's pods find besides checkpoints and the stage file."""

    sources: list[Placed]
    secrets: list[Mounted]


def fetched_path(address: str, revision: str | None) -> str:
    """Where `prepare` puts a remote source; one place for each address and revision."""
    text = f"{address}@{revision}" if revision else address
    return f"{FETCHED}/{_short_sha(text)}"


def _short_sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT_HASH]


def scheme(address: str) -> str:
    """hf, s3, gs, pvc, oci; empty for a path of this machine."""
    head, separator, _ = address.partition("://")
    return head if separator else ""


def place(refs: Iterable[SourceRef]) -> list[Placed]:
    """Each address once, in the order of the spec."""
    placed: dict[str, Placed] = {}
    for ref in refs:
        for address in uris(ref.value):
            if address not in placed:
                is_own = address == ref.value.source  # a tokenizer elsewhere has no revision
                revision = getattr(ref.value, "revision", None) if is_own else None
                placed[address] = _placed(address, revision, len(placed))
    return list(placed.values())


def _placed(address: str, revision: str | None, number: int) -> Placed:
    kind = scheme(address)
    if kind in REMOTE:
        return Placed(address, fetched_path(address, revision))
    if kind == "pvc":
        return _on_claim(address)
    if kind == "oci":
        return _in_image(address)
    name = f"input-{number}"
    path = f"inputs/{number}/{PurePosixPath(address).name or 'root'}"
    return Placed(address, path, {"name": name, "hostPath": {"path": address}}, _mount(name, path))


def _on_claim(address: str) -> Placed:
    """pvc://CLAIM/PATH: the whole claim is mounted once, however many sources are on it."""
    claim, _, path = address.removeprefix("pvc://").partition("/")
    mounted = f"volumes/{claim}"
    name = f"claim-{_short_sha(claim)}"  # a claim's name may be longer than a volume's
    volume: Object = {"name": name, "persistentVolumeClaim": {"claimName": claim}}
    where = str(PurePosixPath(mounted, path)) if path else mounted
    return Placed(address, where, volume, _mount(name, mounted))


def _in_image(address: str) -> Placed:
    """oci://IMAGE#PATH: the whole image is mounted once, however many sources are in it.

    A path below the mount, not a subPath: that takes folders only, and needs Kubernetes 1.33.
    """
    reference, _, path = address.removeprefix("oci://").partition("#")
    name = f"image-{_short_sha(reference)}"
    mounted = f"images/{_short_sha(reference)}"
    volume: Object = {
        "name": name,
        "image": {"reference": reference, "pullPolicy": "IfNotPresent"},
    }
    where = str(PurePosixPath(mounted, path)) if path else mounted
    return Placed(address, where, volume, _mount(name, mounted))


def _mount(volume: str, path: str, *, read_only: bool = True) -> Object:
    mount: Object = {"name": volume, "mountPath": f"{WORKDIR}/{path}"}
    return mount | ({"readOnly": True} if read_only else {})


def checkpoint_claim(job: RLHFJob) -> list[Object]:
    """The claim that the operator makes; none where checkpoints are kept elsewhere.

    It is made once: a claim's class and access mode never change. A retained claim has no owner,
    so deleting the RLHFJob leaves the checkpoints.
    """
    claim = job.spec.checkpoints.claim
    if claim is None:
        return []
    metadata: Object = {
        "name": claim_name(job),
        "namespace": job.metadata.namespace,
        "labels": job_labels(job),
    }
    if not claim.retain and (owners := owner_references(job)):
        metadata["ownerReferences"] = owners
    spec: Object = {
        "accessModes": [claim.access_mode],
        "resources": {"requests": {"storage": claim.size}},
    }
    if claim.storage_class:
        spec["storageClassName"] = claim.storage_class
    return [
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    ]


def pod_volumes(
    key: AttemptKey, contents: Contents, shm_size: str | int, platform: Platform
) -> list[Object]:
    """The volumes of an attempt's pods, each name once."""
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": key.name}},
        {"name": CHECKPOINTS, **_checkpoint_source(key.job)},
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm_size}},
    ]
    if platform.progress_url:
        volumes.append(_token_volume())
    volumes += [item.volume for item in contents.sources if item.volume]
    volumes += [item.volume for item in contents.secrets]
    return list({volume["name"]: volume for volume in volumes}.values())


def local_disk(job: RLHFJob) -> Object:
    """What holds a pod's own copy of what an object store keeps."""
    return {"emptyDir": {"sizeLimit": job.spec.checkpoints.local_size or LOCAL_SIZE}}


def _checkpoint_source(job: RLHFJob) -> Object:
    if job.spec.checkpoints.uri:
        return local_disk(job)
    return {"persistentVolumeClaim": {"claimName": claim_name(job)}}


def _token_volume() -> Object:
    """A token for the progress server alone; the pod's service account stays unmounted."""
    token = {"audience": PROGRESS_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    return {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}


def pod_mounts(key: AttemptKey, contents: Contents, platform: Platform) -> list[Object]:
    """Where the volumes appear, each path once."""
    checkpoints = _mount(CHECKPOINTS, CHECKPOINTS, read_only=False)
    if key.job.spec.checkpoints.sub_path:
        checkpoints["subPath"] = key.job.spec.checkpoints.sub_path
    mounts = [
        _mount("config", "config"),
        checkpoints,
        _mount("tmp", "tmp", read_only=False),
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if platform.progress_url:
        mounts.append(_mount("token", TOKEN_DIRECTORY))
    mounts += [item.mount for item in contents.sources if item.mount]
    mounts += [item.mount for item in contents.secrets]
    return list({mount["mountPath"]: mount for mount in mounts}.values())


TERMINATION_PATH: Final = f"{WORKDIR}/{TERMINATION_LOG}"
