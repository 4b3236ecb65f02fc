"""What an operator process is told at its start: by flags, or by the environment."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rlhf_operator.render.platform import ANY_CLUSTER

PREFIX: Final = "RLHF_"


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
    gang_order: tuple[str, ...] = ANY_CLUSTER.gang_order
    coscheduling_profile: str = ANY_CLUSTER.coscheduling_profile
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
        add("--health-port", type=int, default=int(env("health_port") or standard.health_port))
        add(
            "--progress-port", type=int, default=int(env("progress_port") or standard.progress_port)
        )
        add("--pod-ip", default=env("pod_ip") or standard.pod_ip)
        add("--progress-url", default=env("progress_url") or None)
        add("--gang-order", default=env("gang_order") or ",".join(standard.gang_order))
        add(
            "--coscheduling-profile",
            default=env("coscheduling_profile") or standard.coscheduling_profile,
        )
        add("--workers", type=int, default=int(env("workers") or standard.workers))
        add(
            "--log-level",
            default=env("log_level") or standard.log_level,
            choices=("DEBUG", "INFO", "WARNING", "ERROR"),
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
        return Settings(
            namespaces=tuple(dict.fromkeys(named)),
            lease_namespace=given.lease_namespace,
            identity=given.identity,
            leader_election=not given.no_leader_election,
            health_port=given.health_port,
            progress_port=given.progress_port,
            pod_ip=given.pod_ip,
            progress_url=given.progress_url,
            gang_order=tuple(_words(given.gang_order)),
            coscheduling_profile=given.coscheduling_profile,
            workers=given.workers,
            log_level=given.log_level,
        )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _own_namespace() -> str:
    """The namespace that this pod runs in; `default` outside of a cluster."""
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
            return file.read().strip()
    except OSError:
        return Settings().lease_namespace
