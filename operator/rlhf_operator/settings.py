"""What an operator process is told at its start: by flags, or by the environment."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError
from rlhf_api.affinity import Toleration

from rlhf_operator.render.gang import GANGS
from rlhf_operator.render.platform import ANY_CLUSTER, Defaults

PREFIX: Final = "RLHF_"
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
TOLERATIONS: Final = TypeAdapter(tuple[Toleration, ...])


class Settings(NamedTuple):
    """All of it. Each flag has a variable of its name: --lease-namespace, RLHF_LEASE_NAMESPACE."""

    namespaces: tuple[str, ...] = ()
    """Those that are served; none: all of them."""
    lease_namespace: str = "default"
    identity: str = ""
    """This process, among its replicas."""
    leader_election: bool = True
    health_port: int = 8080
    progress_port: int = 8082
    pod_ip: str = "127.0.0.1"
    """Where other replicas reach this one."""
    progress_url: str | None = None
    """Where pods reach the progress server, as a URL; None: trainers do not report."""
    webhook_port: int | None = None
    """Where the API server asks about RLHFJobs before it takes them; None: it does not ask."""
    tls_directory: Path | None = None
    """Certificate of the webhook, and of a progress URL with https, as a Secret is mounted."""
    tls_name: str = ""
    """DNS name in the certificate."""
    gang_order: tuple[str, ...] = ANY_CLUSTER.gang_order
    coscheduling_profile: str = ANY_CLUSTER.coscheduling_profile
    defaults: Defaults = Defaults()
    """What jobs get that do not say."""
    workers: int = 16
    log_level: str = "INFO"


def parse(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command line. SystemExit(2) says what is wrong with it."""
    return _Parser(environ).settings(words)


class _Parser:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._parser = argparse.ArgumentParser(
            prog="python -m rlhf_operator", description="Runs RLHFJobs on Kubernetes."
        )

    def settings(self, words: Sequence[str]) -> Settings:
        add, env, standard = self._parser.add_argument, self._of, Settings()
        scope = self._parser.add_mutually_exclusive_group()
        scope.add_argument(
            "--namespace",
            action="append",
            dest="namespaces",
            metavar="NAME",
            help="serve this namespace; may be given several times (RLHF_NAMESPACES: a,b)",
        )
        scope.add_argument("--all-namespaces", action="store_true", help="serve every namespace")
        add("--lease-namespace", default=env("lease_namespace") or _own_namespace())
        add("--identity", default=env("identity") or socket.gethostname())
        add("--no-leader-election", action="store_true", help="this is the only process")
        # What the environment says stays text: argparse reads it as it reads a flag's.
        add("--health-port", type=int, default=env("health_port") or standard.health_port)
        add("--progress-port", type=int, default=env("progress_port") or standard.progress_port)
        add("--pod-ip", default=env("pod_ip") or standard.pod_ip)
        add("--progress-url", default=env("progress_url") or None)
        add("--webhook-port", type=int, default=env("webhook_port") or None)
        add("--tls-directory", type=Path, default=env("tls_directory") or None)
        add("--tls-name", default=env("tls_name"))
        add("--gang-order", default=env("gang_order") or ",".join(standard.gang_order))
        add(
            "--coscheduling-profile",
            default=env("coscheduling_profile") or standard.coscheduling_profile,
        )
        for name in ("image", "queue", "storage-class"):
            option = f"default_{name.replace('-', '_')}"
            add(f"--default-{name}", default=env(option) or None, help="of jobs that name none")
        add(
            "--default-node-selector",
            default=env("default_node_selector"),
            metavar="LABEL=VALUE,…",
            help="labels of the nodes that have devices",
        )
        add(
            "--default-tolerations",
            default=env("default_tolerations"),
            metavar="JSON",
            help="taints of the nodes that have devices, as in a pod's tolerations",
        )
        add("--workers", type=int, default=env("workers") or standard.workers)
        add(
            "--log-level",
            type=_level,
            default=env("log_level") or standard.log_level,
            metavar="{" + ",".join(LEVELS) + "}",
        )
        return self._checked(self._parser.parse_args(words))

    def _of(self, name: str) -> str:
        return self._environ.get(PREFIX + name.upper(), "")

    def _checked(self, given: argparse.Namespace) -> Settings:
        named = given.namespaces or _words(self._of("namespaces"))
        if given.all_namespaces:
            named = []
        elif not named:
            self._parser.error("name the namespaces to serve with --namespace, or --all-namespaces")
        is_secure = (given.progress_url or "").startswith("https://") or given.webhook_port
        if is_secure and not given.tls_directory:
            self._parser.error("a webhook, or a progress URL with https, needs --tls-directory")
        return Settings(
            namespaces=tuple(dict.fromkeys(named)),
            lease_namespace=given.lease_namespace,
            identity=given.identity,
            leader_election=not given.no_leader_election,
            health_port=given.health_port,
            progress_port=given.progress_port,
            pod_ip=given.pod_ip,
            progress_url=given.progress_url,
            webhook_port=given.webhook_port,
            tls_directory=given.tls_directory and Path(given.tls_directory),
            tls_name=given.tls_name,
            gang_order=self._gangs(given.gang_order),
            coscheduling_profile=given.coscheduling_profile,
            defaults=Defaults(
                image=given.default_image,
                queue=given.default_queue,
                storage_class=given.default_storage_class,
                node_selector=self._labels(given.default_node_selector),
                tolerations=self._tolerations(given.default_tolerations),
            ),
            workers=given.workers,
            log_level=given.log_level,
        )

    def _gangs(self, text: str) -> tuple[str, ...]:
        names = _words(text)
        for name in names:
            if name not in GANGS:
                known = ", ".join(GANGS)
                self._parser.error(f"--gang-order has {name!r}; known names are {known}")
        return tuple(names)

    def _labels(self, text: str) -> dict[str, str]:
        pairs = [word.partition("=") for word in _words(text)]
        if any(not separator for _, separator, _ in pairs):
            self._parser.error(f"--default-node-selector is {text!r}, not label=value,label=value")
        return {label: value for label, _, value in pairs}

    def _tolerations(self, text: str) -> tuple[Toleration, ...]:
        try:
            return TOLERATIONS.validate_json(text or "[]", by_alias=True, by_name=False)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            self._parser.error(f"--default-tolerations, {where or 'as a whole'}: {first['msg']}")


def _level(word: str) -> str:
    """argparse holds no default to `choices`, and what the environment says is one."""
    if word not in LEVELS:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(LEVELS)}")
    return word


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _own_namespace() -> str:
    """The namespace that this pod runs in; `default` outside of a cluster."""
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
            return file.read().strip()
    except OSError:
        return Settings().lease_namespace
