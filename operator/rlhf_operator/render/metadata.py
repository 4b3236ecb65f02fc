"""Names, labels and owners of the children. Nothing of the parent's labels is passed on."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from rlhf_api.job import KIND, RLHFJob

from rlhf_operator.names import (
    ANNOTATION_APPLIED,
    ANNOTATION_HASH,
    ANNOTATION_JOB_UID,
    ANNOTATION_SETTINGS,
    FIELD_MANAGER,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_STAGE,
    child_name,
)

Object = dict[str, Any]
"""A Kubernetes object, decoded."""


class AttemptKey(NamedTuple):
    """Which attempt on what is rendered."""

    job: RLHFJob
    stage: str
    number: int
    hash: str
    settings: str

    @property
    def name(self) -> str:
        """Name of the attempt's children; `service_name` may make another of it."""
        return child_name(self.job.metadata.name, self.stage, self.number)


def attempt_labels(key: AttemptKey) -> dict[str, str]:
    """Labels of an attempt's children and pods.

    Never `app.kubernetes.io/instance`, by which GitOps tools take an object to be their own.
    """
    return {
        **job_labels(key.job),
        LABEL_STAGE: key.stage,
        LABEL_ATTEMPT: str(key.number),
    }


def job_labels(job: RLHFJob) -> dict[str, str]:
    """Labels of all that a job makes."""
    return {"app.kubernetes.io/managed-by": FIELD_MANAGER, LABEL_JOB: job.metadata.name}


def attempt_annotations(key: AttemptKey) -> dict[str, str]:
    """What the attempt works on, and for whom; and no refresh of Argo CD at each change of a
    child's status."""
    uid = key.job.metadata.uid
    return {
        **({ANNOTATION_JOB_UID: uid} if uid else {}),
        ANNOTATION_HASH: key.hash,
        ANNOTATION_SETTINGS: key.settings,
        "argocd.argoproj.io/ignore-resource-updates": "true",
    }


def metadata(key: AttemptKey) -> Object:
    """Metadata of an attempt's child."""
    own: Object = {
        "name": key.name,
        "namespace": key.job.metadata.namespace,
        "labels": attempt_labels(key),
        "annotations": attempt_annotations(key),
    }
    owners = owner_references(key.job)
    return own | ({"ownerReferences": owners} if owners else {})


def with_applied(item: Object) -> Object:
    """The object with a copy of its spec, by which an edit of somebody else's is seen."""
    text = json.dumps(item["spec"], separators=(",", ":"), sort_keys=True)
    annotations = {**item["metadata"]["annotations"], ANNOTATION_APPLIED: text}
    return item | {"metadata": item["metadata"] | {"annotations": annotations}}


def owner_references(job: RLHFJob) -> list[Object]:
    """The RLHFJob as controller: its deletion takes the child along. None before it has a UID.

    Not `blockOwnerDeletion`: where the API server enforces permissions on owner references, as
    OpenShift's does, that takes the right to set finalizers on RLHFJobs.
    """
    if not job.metadata.uid:
        return []
    return [
        {
            "apiVersion": job.api_version,
            "kind": KIND,
            "name": job.metadata.name,
            "uid": job.metadata.uid,
            "controller": True,
        }
    ]
