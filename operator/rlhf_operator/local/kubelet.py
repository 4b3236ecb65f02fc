"""What a kubelet does to a container before it starts: variables in its command and environment."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_operator.local.mounts import local_path
from rlhf_operator.names import pod_host

REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced as Kubernetes does: unknown names stay, ``$$`` escapes."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else variables.get(name, match.group(0))

    return REFERENCE.sub(value, text)


def environment(container: dict[str, Any], index: int, directory: Path) -> dict[str, str]:
    """The container's own variables, with paths below the working directory as they are here."""
    variables = {"JOB_COMPLETION_INDEX": str(index)}
    for item in container.get("env", []):
        text = expanded(item["value"], variables)
        inside = local_path(text) if text.startswith("/") else None
        variables[item["name"]] = str(directory / inside) if inside is not None else text
    return variables


def command(
    container: dict[str, Any],
    variables: Mapping[str, str],
    hosts: Mapping[str, str],
    ports: Mapping[str, str],
) -> list[str]:
    """The command with variables expanded, host names and ports as they are on this machine."""
    words = [expanded(word, variables) for word in container["command"]]
    words = [ports.get(word, hosts.get(word, word)) for word in words]
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def loopback_hosts(service: str, pods: int) -> dict[str, str]:
    """The names that the headless Service would give to the pods of an Indexed Job."""
    return {pod_host(service, index): "127.0.0.1" for index in range(pods)}


def tail(log: Path, *, limit: int = 2048, lines: int = 80) -> str:
    """The end of a log, as FallbackToLogsOnError takes it."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - limit))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def no_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Keeps reports to the loopback address away from a proxy that the user has set."""
    names = {"no_proxy", "NO_PROXY"}
    return {name: _with_loopback(environ.get(name, "")) for name in names}


def _with_loopback(hosts: str) -> str:
    known: Sequence[str] = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost"]))
