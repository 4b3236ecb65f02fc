"""What a kubelet does to a container before it starts, and reads after it has ended."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_api.run import TERMINATION_LIMIT

from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.mounts import local_path

Object = dict[str, Any]

REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
FIELD: Final = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]")
LOG_LIMIT: Final = 2048
LOG_LINES: Final = 80


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced as Kubernetes does: unknown names stay, ``$$`` escapes."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else variables.get(name, match.group(0))

    return REFERENCE.sub(value, text)


def environment(pod: Object, directory: Path, addresses: Addresses) -> dict[str, str]:
    """The container's own variables, with paths and addresses as they are on this machine.

    Each has a value or a field of the pod: Secrets are not rendered for one machine.
    """
    container = pod["spec"]["containers"][0]
    variables: dict[str, str] = {}
    for item in container.get("env", []):
        variables[item["name"]] = _value(pod, item, variables)
    return {
        name: _here(container, addresses.local(text), directory) for name, text in variables.items()
    }


def _here(container: Object, text: str, directory: Path) -> str:
    inside = local_path(container, text) if text.startswith("/") else None
    return str(directory / inside) if inside is not None else text


def _value(pod: Object, item: Object, variables: Mapping[str, str]) -> str:
    source = item.get("valueFrom")
    if source is None:
        return expanded(item.get("value", ""), variables)
    return field(pod, source["fieldRef"]["fieldPath"])


def field(pod: Object, path: str) -> str:
    """A field of the pod, as the downward API gives it."""
    if keyed := FIELD.fullmatch(path):
        return str(pod["metadata"].get(keyed[1], {}).get(keyed[2], ""))
    value: Any = pod
    for name in path.split("."):
        value = value.get(name, {})
    return value if isinstance(value, str) else ""


def command(container: Object, variables: Mapping[str, str], addresses: Addresses) -> list[str]:
    """Command and arguments with variables expanded, and addresses as they are on this machine."""
    given = [*container.get("command", []), *container.get("args", [])]
    words = [addresses.local(expanded(word, variables)) for word in given]
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def termination_message(file: Path | None, log: Path, *, failed: bool) -> str:
    """What the container left, or after a failure the end of its log (FallbackToLogsOnError)."""
    text = _last_bytes(file, TERMINATION_LIMIT) if file else ""
    return text or (tail(log) if failed else "")


def tail(log: Path) -> str:
    """The end of a log, as FallbackToLogsOnError takes it."""
    return "\n".join(_last_bytes(log, LOG_LIMIT).splitlines()[-LOG_LINES:])


def _last_bytes(file: Path, limit: int) -> str:
    """Empty where there is no such file."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - limit))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def no_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Keeps reports to the loopback address away from a proxy that the user has set."""
    names = {"no_proxy", "NO_PROXY"}
    return {name: _with_loopback(environ.get(name, "")) for name in names}


def _with_loopback(hosts: str) -> str:
    known: Sequence[str] = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost"]))
