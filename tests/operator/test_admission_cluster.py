"""The webhook behind a real API server, as kubectl's user meets it."""

from __future__ import annotations

import asyncio
import base64
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import MANIFEST
from certificates import a_certificate
from cluster.client import PATIENCE, Client
from cluster.control_plane import ControlPlane
from cluster.loop_thread import LoopThread, end_other_tasks
from kubernetes.client import ApiException
from rlhf_operator.admission import Admission
from rlhf_operator.api import ApiError, Resource
from rlhf_operator.render.platform import Platform
from rlhf_operator.tls import TLSFiles


class Webhook:
    """The webhook in a thread of its own, at a loopback port, over TLS."""

    def __init__(self, client: Client, files: TLSFiles) -> None:
        self._client = client
        self._loop = LoopThread("webhook")
        self._loop.start()
        self.port = self._loop.do(self._serve(files))

    async def _serve(self, files: TLSFiles) -> int:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        admission = Admission(self._get, Platform)
        serving = admission.serve("127.0.0.1", 0, files, port.set_result)
        self._serving = asyncio.create_task(serving)
        return await port

    async def _get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        where = f"{resource.api_version}/{resource.plural}"
        try:
            return await asyncio.to_thread(self._client.get, where, name, namespace)
        except ApiException as error:
            raise ApiError(error.status or 0, str(error.reason), "") from None

    def close(self) -> None:
        self._loop.stop(end_other_tasks())


def configuration(
    namespace: str, port: int, files: TLSFiles, policy: str, group: str
) -> dict[str, Any]:
    """For the objects of one namespace."""
    rule = {"apiGroups": [group], "apiVersions": ["*"], "resources": ["rlhfjobs", LOOSE_PLURAL]}
    authority = base64.b64encode(files.authority.read_bytes()).decode()
    webhook = {
        "name": "validate.rlhf.dev",
        "clientConfig": {"url": f"https://localhost:{port}/validate", "caBundle": authority},
        "rules": [rule | {"operations": ["CREATE", "UPDATE"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "failurePolicy": policy,
        "sideEffects": "None",
        "timeoutSeconds": 30,
        "admissionReviewVersions": ["v1"],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": f"rlhf-{namespace}"},
        "webhooks": [webhook],
    }


LOOSE_PLURAL = "loosejobs"  # another than ours, for which kubectl in other tests would take it
LOOSE_NAME = f"{LOOSE_PLURAL}.loose.example.com"
LOOSE: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": LOOSE_NAME},
    "spec": {
        "group": "loose.example.com",
        "scope": "Namespaced",
        "names": {"kind": "RLHFJob", "plural": LOOSE_PLURAL, "singular": "loosejob"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
"""A resource whose schema checks nothing, so that all is left to the webhook."""


@pytest.fixture
def loose(installed: ControlPlane) -> Iterator[str]:
    """The group of LOOSE, which is served."""
    installed.client.apply(LOOSE)
    installed.kubectl("wait", "--for=condition=Established", f"crd/{LOOSE_NAME}")
    yield LOOSE["spec"]["group"]
    installed.client.delete("apiextensions.k8s.io/v1/customresourcedefinitions", LOOSE_NAME)


@pytest.fixture
def install(
    installed: ControlPlane, namespace: str, tmp_path: Path
) -> Iterator[Callable[..., None]]:
    """Installs the webhook, and takes it away again."""
    files = a_certificate(tmp_path)
    webhook = Webhook(installed.client, files)

    def put(policy: str = "Fail", port: int = 0, group: str = "rlhf.dev") -> None:
        body = configuration(namespace, port or webhook.port, files, policy, group)
        installed.client.apply(body)

    yield put
    path = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    installed.client.delete(path, f"rlhf-{namespace}")
    webhook.close()


def a_job(name: str, **spec: Any) -> str:
    manifest = copy.deepcopy(MANIFEST)
    manifest["metadata"] = {"name": name}
    manifest["spec"] |= spec
    return yaml.safe_dump(manifest)


class Kubectl:
    """What kubectl prints, warnings included, for a manifest that it tries or creates."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._run, self._namespace = control_plane.kubectl, namespace

    def create(self, manifest: str, *flags: str) -> str:
        words = ["create", "-n", self._namespace, "-f", "-", "--warnings-as-errors", *flags]
        return str(self._run(*words, input=manifest, check=False))

    def tries_until(self, said: str, manifest: str) -> str:
        """A new webhook is in use after a moment."""
        deadline = time.monotonic() + PATIENCE
        while said not in (text := self.create(manifest, "--dry-run=server")):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        return text


@pytest.fixture
def kubectl(installed: ControlPlane, namespace: str) -> Kubectl:
    return Kubectl(installed, namespace)


def test_kubectl_shows_what_is_not_there_and_the_job_is_made(
    installed: ControlPlane, namespace: str, kubectl: Kubectl, install: Callable[..., None]
) -> None:
    install()
    manifest = a_job("tiny", checkpoints={"existingClaim": "shared"})
    kubectl.tries_until("there is no PersistentVolumeClaim shared in namespace", manifest)
    assert "rlhfjob.rlhf.dev/tiny created" in kubectl.create(manifest)
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    installed.client.create(claim, namespace)
    again = kubectl.create(a_job("again", checkpoints={"existingClaim": "shared"}))
    assert "created" in again
    assert "Warning" not in again


def test_kubectl_shows_each_problem_that_the_webhook_finds(
    kubectl: Kubectl, install: Callable[..., None], loose: str
) -> None:
    install(group=loose)
    manifest = yaml.safe_load(a_job("tiny", seed=-1))
    manifest["apiVersion"] = f"{loose}/v1alpha1"
    said = kubectl.tries_until("is invalid", yaml.safe_dump(manifest))
    assert "* spec.seed: -1 is too small (a whole number from 0 to" in said
    assert "* apiVersion: 'loose.example.com/v1alpha1' is not allowed here" in said


def test_a_webhook_that_is_down_stops_nobody_where_its_policy_is_ignore(
    kubectl: Kubectl, install: Callable[..., None]
) -> None:
    install(policy="Fail", port=1)
    kubectl.tries_until("failed calling webhook", a_job("tiny"))
    install(policy="Ignore", port=1)
    kubectl.tries_until("created", a_job("tiny"))
    assert "created" in kubectl.create(a_job("tiny"))
