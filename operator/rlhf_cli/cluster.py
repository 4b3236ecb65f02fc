"""RLHFJobs on a cluster, as the user of a kubeconfig sees them; every refusal says what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import DENIED, FAILED, TRANSIENT, UNAVAILABLE, Failure

try:
    from kubernetes.aio import config
    from kubernetes.aio.client import ApiClient, Configuration
    from rlhf_operator.api import Api, ApiError, Object
    from rlhf_operator.cluster import RLHFJOBS
except ModuleNotFoundError as error:
    raise Failure(
        f"commands that talk to a cluster need the package {error.name}",
        "install it with: pip install 'rlhf-operator[operator]'",
    ) from None

FIELD_MANAGER: Final = "rlhfctl"
OF_THE_POD: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
DEFAULT_NAMESPACE: Final = "default"


class Access(NamedTuple):
    """Which cluster and namespace, as kubectl is told; None: what the kubeconfig says."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Access:
        """From the flags that all commands on a cluster have."""
        return cls(args.kubeconfig, args.context, args.namespace)


class Cluster:
    """The RLHFJobs of one namespace. Methods raise Failure."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    async def job(self, name: str) -> RLHFJob:
        """One of them."""
        path = RLHFJOBS.path(self.namespace, name)
        found = await self._ask("get", name, "GET", path)
        try:
            return RLHFJob.parse(found)
        except ValueError as error:
            raise Failure(
                f"this rlhfctl cannot read the RLHFJob {name}: {str(error).splitlines()[0]}",
                "use the rlhfctl of the operator's version",
            ) from None

    async def annotate(self, job: RLHFJob, key: str, value: str) -> None:
        """Sets an annotation of this very job: not of one that was made anew under its name."""
        name = job.metadata.name
        body = {"metadata": {"uid": job.metadata.uid, "annotations": {key: value}}}
        await self._ask("patch", name, "PATCH", RLHFJOBS.path(self.namespace, name), body)

    async def _ask(
        self, verb: str, name: str, method: str, path: str, body: Object | None = None
    ) -> Object:
        query = {"fieldManager": FIELD_MANAGER} if body else None
        kind = "application/merge-patch+json"
        try:
            return await self._api.request(method, path, query, body, kind)
        except ApiError as error:
            raise self._failure(error, verb, name) from None

    def _failure(self, error: ApiError, verb: str, name: str) -> Failure:
        said = error.args[0]
        if error.code == 404 and error.reason != "NotFound":
            return Failure(
                "the cluster knows no RLHFJobs",
                "install the CustomResourceDefinition: rlhfctl schema --crd | "
                "kubectl apply --server-side -f -",
            )
        if error.code == 404:
            return Failure(
                f"there is no RLHFJob {name} in the namespace {self.namespace}",
                f"see those that are there: kubectl get rlhfjobs -n {self.namespace}, or name "
                "another namespace with -n",
            )
        if error.code == 403:
            return Failure(
                f"not allowed: {said}",
                f"ask for the right, and check it: kubectl auth can-i {verb} rlhfjobs "
                f"-n {self.namespace}",
                exit_code=DENIED,
            )
        if error.code == 401:
            return Failure(
                "the API server does not know you: the login of the kubeconfig is missing or "
                "has expired",
                "log in again, or name another --context",
                exit_code=DENIED,
            )
        if error.code == 409:
            return Failure(f"{name} has just changed; run again", exit_code=TRANSIENT)
        if error.code == 0:
            return _unreachable(f"the API server does not answer: {said}")
        code = TRANSIENT if error.is_passing else FAILED
        return Failure(f"the API server refused to {verb} {name}: {said}", exit_code=code)


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Cluster]:
    """By --kubeconfig, KUBECONFIG or ~/.kube/config, else as the pod that this process runs in."""
    settings = Configuration()
    if not access.kubeconfig and not _has_kubeconfig() and os.path.exists(OF_THE_POD):
        namespace = _of_the_pod(settings)
    else:
        namespace = await _of_the_kubeconfig(access, settings)
    api = Api(ApiClient(settings))
    try:
        yield Cluster(api, access.namespace or namespace)
    finally:
        await api.close()


def _has_kubeconfig() -> bool:
    paths = config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)
    return any(os.path.exists(os.path.expanduser(path)) for path in paths)


def _of_the_pod(settings: Any) -> str:
    config.load_incluster_config(client_configuration=settings)
    with open(OF_THE_POD, encoding="utf-8") as file:
        return file.read().strip()


async def _of_the_kubeconfig(access: Access, settings: Any) -> str:
    """Fills the settings in; the namespace of the context."""
    file = access.kubeconfig
    if file and not os.path.isfile(file):
        raise _unreachable(f"there is no kubeconfig {file}")
    if not file and not _has_kubeconfig():
        raise _unreachable(f"there is no kubeconfig at {config.KUBE_CONFIG_DEFAULT_LOCATION}")
    try:
        contexts, current = config.list_kube_config_contexts(file)
        await config.load_kube_config(file, access.context, settings, persist_config=False)
    except Exception as error:  # a file of any form whatever, and plug-ins that log in
        said = str(error).splitlines() or [type(error).__name__]
        raise _unreachable(f"the kubeconfig cannot be used: {said[0]}") from None
    named = {item["name"]: item["context"] for item in contexts}
    chosen = named[access.context] if access.context else current["context"]
    return chosen.get("namespace") or DEFAULT_NAMESPACE


def _unreachable(said: str) -> Failure:
    return Failure(
        said,
        "name a cluster with --kubeconfig or --context; kubectl cluster-info shows whether it "
        "answers",
        exit_code=UNAVAILABLE,
    )
