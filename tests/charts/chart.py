"""The chart as Helm renders it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "rlhf-operator"
RELEASE, NAMESPACE = "rlhf-operator", "rlhf-system"

Object = dict[str, Any]


class Rendered(NamedTuple):
    """The objects of a release."""

    objects: list[Object]

    def of(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        """The only one of its kind, or of that name."""
        (found,) = (item for item in self.of(kind) if name in ("", item["metadata"]["name"]))
        return found

    @property
    def kinds(self) -> set[str]:
        return {item["kind"] for item in self.objects}

    @property
    def pod(self) -> Object:
        """The spec of a replica's pod."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (found,) = self.pod["containers"]
        return dict(found)

    @property
    def args(self) -> list[str]:
        return list(self.container["args"])


class Helm:
    """Helm, with configuration and caches of its own."""

    def __init__(self, program: Path, home: Path, kubeconfig: Path | None = None) -> None:
        self._program = program
        names = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME")
        self._environment = {"PATH": "/usr/bin:/bin"} | dict.fromkeys(names, str(home))
        self._environment["KUBECONFIG"] = str(kubeconfig or home / "no-cluster")

    def run(self, *words: str | Path, values: Mapping[str, Any] | None = None) -> str:
        """What it prints. Raises RuntimeError with its errors; `values` are those of a file."""
        given = [] if values is None else ["--values", "-"]
        done = subprocess.run(
            [str(self._program), *map(str, words), *given],
            input=None if values is None else yaml.safe_dump(dict(values)),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def render(
        self, values: Mapping[str, Any] | None = None, *, crds: bool = False, name: str = RELEASE
    ) -> Rendered:
        """`helm template`, without the CRD where nobody asks for it: it is large."""
        given = {"crds": {"enabled": crds}} | dict(values or {})
        text = self.run("template", name, CHART, "--namespace", NAMESPACE, values=given)
        return Rendered([item for item in yaml.safe_load_all(text) if item])


def values_of(path: str, value: Any) -> Object:
    """`a.b` and a value as nested mappings."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)
