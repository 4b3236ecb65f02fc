"""What kstatus and Argo CD make of objects, by the program in tests/cluster/go/gitops."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from cluster.binaries import find_program

Object = dict[str, Any]
REPOSITORY: Final = Path(__file__).parents[2]
ARGOCD_CM: Final = REPOSITORY / "gitops/argocd/argocd-cm.yaml"
KEY: Final = "resource.customizations.{}.rlhf.dev_RLHFJob"


class Verdict(NamedTuple):
    """kstatus' word, and what each script returned."""

    kstatus: str
    scripts: dict[str, Any]

    @property
    def argo(self) -> str:
        return str(self.scripts["health"]["status"])

    @property
    def offered(self) -> str:
        """The actions that are not disabled."""
        found = self.scripts["discovery"].items()
        return " ".join(sorted(name for name, item in found if not item.get("disabled")))


def scripts() -> dict[str, str]:
    """The Lua that argocd-cm.yaml gives Argo CD: `health`, `discovery` and each action."""
    data = yaml.safe_load(ARGOCD_CM.read_text("utf-8"))["data"]
    actions = yaml.safe_load(data[KEY.format("actions")])
    return {
        "health": data[KEY.format("health")],
        "discovery": actions["discovery.lua"],
        **{item["name"]: item["action.lua"] for item in actions["definitions"]},
    }


def judge(objects: Mapping[str, Object], *names: str) -> dict[str, Verdict]:
    """By the key of each object; `names`: scripts to run, `health` and `discovery` if none."""
    chosen = {name: scripts()[name] for name in names or ("health", "discovery")}
    asked = [json.dumps({"object": item, "scripts": chosen}) for item in objects.values()]
    done = subprocess.run(
        [find_program("gitops-judge")],
        input="\n".join(asked),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        key: Verdict(answer["kstatus"], answer["scripts"])
        for key, answer in zip(objects, said, strict=True)
    }
