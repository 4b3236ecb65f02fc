"""The pod that reads a job's checkpoint volume, or object store. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_api.job import KIND, RLHFJob
from rlhf_api.run import WORKDIR
from rlhf_operator.names import claim_name
from rlhf_operator.render.secrets import Mounted, default_path
from rlhf_operator.render.security import USER_ID, container_security, pod_security
from rlhf_operator.render.volumes import CHECKPOINTS, SCRATCH_SIZE

from rlhf_cli.targets import reader
from rlhf_cli.targets.target import Object

LABEL: Final = "rlhf.dev/reader-of"
LONGEST: Final = 6 * 3600
"""Seconds after which the pod ends, whatever becomes of this process."""


def reader_pod(
    job: RLHFJob, image: str, patterns: Sequence[str], have: Mapping[str, int], node: str | None
) -> Object:
    """It mounts the claim read-only; what an object store keeps is first copied to its own disk.
    `node`: where a volume that one node alone mounts is in use.

    The RLHFJob owns it, so that it never outlives it. Its labels are not those of an attempt.
    """
    meta, spec = job.metadata, job.spec
    mount: Object = {"name": CHECKPOINTS, "mountPath": f"{WORKDIR}/{CHECKPOINTS}", "readOnly": True}
    if spec.checkpoints.sub_path:
        mount["subPath"] = spec.checkpoints.sub_path
    claim = {"claimName": claim_name(job), "readOnly": True}
    volume: Object = {"name": CHECKPOINTS, "persistentVolumeClaim": claim}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "activeDeadlineSeconds": LONGEST,
        **pod_security(),
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "containers": [
            {
                "name": "reader",
                "image": image,
                "workingDir": WORKDIR,
                "command": [
                    *("python", "-c", Path(reader.__file__).read_text(encoding="utf-8")),
                    json.dumps({"patterns": list(patterns), "have": dict(have)}),
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "securityContext": container_security(),
                "volumeMounts": [mount],
            }
        ],
        "volumes": [volume],
    }
    if spec.checkpoints.uri:
        pod |= _from_store(job, image, patterns, pod["containers"][0]["resources"])
    if node:
        pod |= {"affinity": _beside(node), "tolerations": [{"operator": "Exists"}]}
    owner = {"apiVersion": job.api_version, "kind": KIND, "name": meta.name, "uid": meta.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta.name}-reader-{uuid.uuid4().hex[:6]}",
            "namespace": meta.namespace,
            "labels": {"app.kubernetes.io/managed-by": "rlhfctl", LABEL: meta.name},
            "ownerReferences": [owner],
        },
        "spec": pod,
    }


def _from_store(job: RLHFJob, image: str, patterns: Sequence[str], resources: Object) -> Object:
    """A container of the trainer that brings what fits, as whom the job's own pods do."""
    spec = job.spec
    mounts: list[Object] = [{"name": CHECKPOINTS, "mountPath": f"{WORKDIR}/{CHECKPOINTS}"}]
    volumes: list[Object] = [{"name": CHECKPOINTS, "emptyDir": {"sizeLimit": SCRATCH_SIZE}}]
    words = ["python", "-m", "rlhf_trainer", "copy"]
    if secret := spec.checkpoints.secret:
        mounted = Mounted(secret, default_path(secret))
        mounts.append(mounted.mount)
        volumes.append(mounted.volume)
        words += ["--secret", secret]
    names = [pattern.removeprefix(f"{CHECKPOINTS}/") for pattern in patterns]
    copy: Object = {
        "name": "copy",
        "image": image,
        "workingDir": WORKDIR,
        "command": [*words, str(spec.checkpoints.uri), CHECKPOINTS, *names],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": resources,
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    security = pod_security()["securityContext"] | {"fsGroup": USER_ID}
    identity = spec.resources.service_account
    as_whom = {"serviceAccountName": identity} if identity else {}
    return {"initContainers": [copy], "volumes": volumes, "securityContext": security, **as_whom}


def _beside(node: str) -> Object:
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [{"matchFields": [here]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}
