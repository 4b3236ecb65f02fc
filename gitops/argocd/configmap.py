"""Prints argocd-cm.yaml: what Argo CD needs to know of RLHFJobs, from the Lua files beside it.

`make generate` writes it. It is a patch: merge its keys into the ConfigMap that you have.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Final

HERE: Final = Path(__file__).parent
ACTIONS: Final = ("suspend", "resume", "approve", "retry")
HEAD: Final = """\
# Generated from the Lua files beside it. Merge its keys into your argocd-cm:
#   kubectl patch configmap argocd-cm -n argocd --patch-file gitops/argocd/argocd-cm.yaml
apiVersion: v1
kind: ConfigMap
metadata:
  name: argocd-cm
  namespace: argocd
  labels:
    app.kubernetes.io/name: argocd-cm
    app.kubernetes.io/part-of: argocd
data:
"""
KEY: Final = "resource.customizations.{}.rlhf.dev_RLHFJob"
# A report of progress changes the status alone; a change of health is looked at all the same.
QUIET: Final = "jsonPointers:\n  - /status\n"


def block(key: str, text: str) -> str:
    """A key and its text as a literal block."""
    return f"{key}: |\n{indent(text, '  ')}"


def definition(action: str) -> str:
    """One action, as an item of a list."""
    text = block("action.lua", (HERE / "actions" / f"{action}.lua").read_text("utf-8"))
    return f"  - name: {action}\n{indent(text, '    ')}"


def actions() -> str:
    """Which actions there are now, and what each does."""
    discovery = block("discovery.lua", (HERE / "actions" / "discovery.lua").read_text("utf-8"))
    return discovery + "definitions:\n" + "".join(map(definition, ACTIONS))


def configmap() -> str:
    """The whole patch."""
    data = {
        "health": (HERE / "health.lua").read_text("utf-8"),
        "actions": actions(),
        "ignoreResourceUpdates": QUIET,
    }
    return HEAD + "".join(indent(block(KEY.format(k), text), "  ") for k, text in data.items())


if __name__ == "__main__":
    print(configmap(), end="")
