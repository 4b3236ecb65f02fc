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
from rlhf_operator.render.security import NO_DEVICES, USER_ID, container_security, pod_security
from rlhf_operator.render.volumes import CHECKPOINTS, local_disk

from rlhf_cli.targets import reader
from rlhf_cli.targets.target import Object

READER: Final = "reader"
"""The name of its container."""
LABEL: Final = "rlhf.dev/reader-of"
RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
"""With a limit, for namespaces whose quota asks for one; it reads and copies piece by piece."""
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
    copy, volumes, mounts = _in_store(job, patterns) if spec.checkpoints.uri else _on_claim(job)
    asked = {"patterns": list(patterns), "have": dict(have), "copy": copy}
    security = pod_security()
    if copy:  # it reads a Secret, and writes to a disk of its own
        security["securityContext"] |= {"fsGroup": USER_ID}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "activeDeadlineSeconds": LONGEST,
        **security,
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "containers": [
            {
                "name": READER,
                "image": image,
                "workingDir": WORKDIR,
                "command": [
                    *("python", "-c", Path(reader.__file__).read_text(encoding="utf-8")),
                    json.dumps(asked),
                ],
                "env": [{"name": name, "value": value} for name, value in NO_DEVICES.items()],
                "resources": RESOURCES,
                "securityContext": container_security(),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if copy and (identity := spec.resources.service_account):
        pod["serviceAccountName"] = identity
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


def _in_store(
    job: RLHFJob, patterns: Sequence[str]
) -> tuple[list[str], list[Object], list[Object]]:
    """Words for the trainer that copies what fits; the volumes and mounts that it needs."""
    checkpoints = job.spec.checkpoints
    words = ["copy", str(checkpoints.uri), CHECKPOINTS]
    words += [pattern.removeprefix(f"{CHECKPOINTS}/") for pattern in patterns]
    volumes: list[Object] = [{"name": CHECKPOINTS, **local_disk(job)}]
    mounts: list[Object] = [{"name": CHECKPOINTS, "mountPath": f"{WORKDIR}/{CHECKPOINTS}"}]
    if secret := checkpoints.secret:
        mounted = Mounted(secret, default_path(secret))
        words += ["--secret", secret]
        volumes.append(mounted.volume)
        mounts.append(mounted.mount)
    return words, volumes, mounts


def _on_claim(job: RLHFJob) -> tuple[list[str], list[Object], list[Object]]:
    mount: Object = {"name": CHECKPOINTS, "mountPath": f"{WORKDIR}/{CHECKPOINTS}", "readOnly": True}
    if job.spec.checkpoints.sub_path:
        mount["subPath"] = job.spec.checkpoints.sub_path
    claim = {"claimName": claim_name(job), "readOnly": True}
    return [], [{"name": CHECKPOINTS, "persistentVolumeClaim": claim}], [mount]


def _beside(node: str) -> Object:
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = [{"matchFields": [here]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}
