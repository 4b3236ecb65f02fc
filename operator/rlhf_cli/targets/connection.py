"""The way to a cluster, as kubectl finds it: flags, KUBECONFIG, ~/.kube/config, the pod's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple

from rlhf_api.fields import suggestion

from rlhf_cli.failures import UNAVAILABLE, Failure

try:
    from kubernetes.aio import config
    from rlhf_operator.api import Api, client_of, client_settings
except ModuleNotFoundError as error:
    raise Failure(
        f"commands that talk to a cluster need the package {error.name}",
        "install it with: pip install 'rlhf-operator[operator]'",
    ) from None

from rlhf_cli.program import release
from rlhf_cli.targets.cluster import ClusterTarget
from rlhf_cli.targets.refusals import unreachable

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

    @property
    def flags(self) -> list[str]:
        """The flags again, for a command that the user is told."""
        named = {"-n": self.namespace, "--context": self.context, "--kubeconfig": self.kubeconfig}
        return [word for flag, value in named.items() if value for word in (flag, value)]


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[ClusterTarget]:
    """The jobs of one namespace. Raises Failure."""
    settings = client_settings()
    login: Callable[[Any], Awaitable[str]] = partial(_of_the_kubeconfig, access)
    if not access.kubeconfig and not _has_kubeconfig() and os.path.exists(OF_THE_POD):
        login = _of_the_pod
    namespace = await login(settings)
    api = Api(client_of(settings), agent=f"rlhfctl/{release()}", login=login)
    try:
        yield ClusterTarget(api, access.namespace or namespace, access.flags)
    finally:
        await api.close()


def _no_context(name: str, known: list[str]) -> Failure:
    guess = suggestion(name, known)
    return Failure(
        f"the kubeconfig has no context {name}",
        f"did you mean {guess}?" if guess else f"it has {', '.join(known) or 'none'}",
        "see them: kubectl config get-contexts",
        exit_code=UNAVAILABLE,
    )


def _has_kubeconfig() -> bool:
    paths = config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)
    return any(os.path.exists(os.path.expanduser(path)) for path in paths)


async def _of_the_pod(settings: Any) -> str:
    config.load_incluster_config(client_configuration=settings)
    with open(OF_THE_POD, encoding="utf-8") as file:
        return file.read().strip()


async def _of_the_kubeconfig(access: Access, settings: Any) -> str:
    """Fills the settings in; the namespace of the context."""
    file = access.kubeconfig
    if file and not os.path.isfile(file):
        raise unreachable(f"there is no kubeconfig {file}")
    if not file and not _has_kubeconfig():
        raise unreachable(f"there is no kubeconfig at {config.KUBE_CONFIG_DEFAULT_LOCATION}")
    try:
        contexts, current = config.list_kube_config_contexts(file)
        named = {item["name"]: item["context"] for item in contexts}
        if access.context and access.context not in named:
            raise _no_context(access.context, list(named))
        await config.load_kube_config(file, access.context, settings, persist_config=False)
    except Failure:
        raise
    except Exception as error:  # a file of any form whatever, and plug-ins that log in
        said = str(error).splitlines() or [type(error).__name__]
        raise unreachable(f"the kubeconfig cannot be used: {said[0]}") from None
    chosen = named[access.context] if access.context else current["context"]
    return chosen.get("namespace") or DEFAULT_NAMESPACE
