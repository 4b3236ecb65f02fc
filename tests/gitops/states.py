"""A job in each state that GitOps tools have to tell apart, as the operator's own code leaves it.

`python tests/gitops/states.py` (with tests/operator on PYTHONPATH) writes them to objects/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from builders import World, a_job

Object = dict[str, Any]
OBJECTS: Final = Path(__file__).parent / "objects"
SHORT: Final = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


class Reading(NamedTuple):
    """What tools make of a state."""

    kstatus: str
    argo: str
    actions: str = ""
    """Those that Argo CD offers."""


def fresh() -> Object:
    """As the API server makes it: no operator has seen it, the schema's default is there."""
    return written(World(a_job().build())) | {"status": {"observedGeneration": -1}}


def seen() -> World:
    world = World(a_job().build())
    world.reconcile()
    return world


def waiting_for_devices() -> World:
    world = World(a_job().build()).up_to("sft")
    world.becomes("sft", "Pending", reason="Unschedulable", message=SHORT)
    world.reconcile()
    return world


def running() -> World:
    return World(a_job().build()).up_to("ppo", "dpo")


def suspending() -> World:
    world = running().edit(a_job().with_spec("suspend", True))
    world.settle()
    return world


def suspended() -> World:
    world = suspending().gone()
    world.settle()
    return world


def approval_needed() -> World:
    gate = {"approval": True, "metric": "eval/accuracy", "min": 0.6}
    world = World(a_job().without("dpo").with_spec("stages.reward.gate", gate).build())
    return world.up_to("reward").succeeds("reward", **{"eval/accuracy": 0.73})


def gate_failed() -> World:
    gate = {"metric": "eval/accuracy", "min": 0.6}
    world = World(a_job().without("dpo").with_spec("stages.reward.gate", gate).build())
    return world.up_to("reward").succeeds("reward", **{"eval/accuracy": 0.52})


def branch_failed() -> World:
    return running().fails("dpo", 64)


def stalled() -> World:
    return World(a_job().build()).up_to("sft").fails("sft", 64)


def prepare_failed() -> World:
    world = World(a_job().build())
    world.settle()
    return world.fails("prepare", 64)


def done() -> World:
    return World(a_job().build()).finish()


def edited() -> Object:
    """A finished job whose new generation the operator has not seen."""
    made = written(done())
    made["metadata"]["generation"] = 2
    return made


def deleting() -> Object:
    made = written(running())
    made["metadata"] |= {
        "deletionTimestamp": "2026-01-31T12:30:00Z",
        "finalizers": ["foregroundDeletion"],
    }
    return made


STATES: Final[dict[str, tuple[Callable[[], World | Object], Reading]]] = {
    "fresh": (fresh, Reading("InProgress", "Progressing", "suspend")),
    "seen": (seen, Reading("InProgress", "Progressing", "suspend")),
    "waiting-for-devices": (waiting_for_devices, Reading("InProgress", "Progressing", "suspend")),
    "running": (running, Reading("InProgress", "Progressing", "suspend")),
    "suspending": (suspending, Reading("InProgress", "Suspended", "resume")),
    "suspended": (suspended, Reading("InProgress", "Suspended", "resume")),
    "approval-needed": (
        approval_needed,
        Reading("InProgress", "Progressing", "approve suspend"),
    ),
    "gate-failed": (gate_failed, Reading("Failed", "Degraded", "suspend")),
    "branch-failed": (branch_failed, Reading("InProgress", "Progressing", "retry suspend")),
    "stalled": (stalled, Reading("Failed", "Degraded", "retry suspend")),
    "prepare-failed": (prepare_failed, Reading("Failed", "Degraded", "retry suspend")),
    "done": (done, Reading("Current", "Healthy")),
    "edited": (edited, Reading("InProgress", "Progressing")),
    "deleting": (deleting, Reading("Terminating", "Progressing", "suspend")),
}


def written(world: World) -> Object:
    """The object: the spec as its user wrote it, the status as the operator writes it."""
    plain: Object = world.job.to_dict()
    plain["spec"] = world.job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return plain


def numbered(plain: Object) -> Object:
    """With digests in the order in which they come, so that a new field of the spec moves none."""
    source = json.dumps(plain)
    for number, digest in enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{64}", source)), start=1):
        name = f"{number:x}".rjust(2, "0") * 32
        source = source.replace(digest, name).replace(digest[:12], name[:12])
    found: Object = json.loads(source)
    return found


def made(state: str) -> Object:
    """The object of a state, made anew."""
    found = STATES[state][0]()
    return numbered(written(found) if isinstance(found, World) else found)


def text(made: Object) -> str:
    return yaml.safe_dump(made, sort_keys=True, allow_unicode=True, width=100)


def recorded(state: str) -> Object:
    """The object of a state, as it was kept."""
    found: Object = yaml.safe_load((OBJECTS / f"{state}.yaml").read_text("utf-8"))
    return found


if __name__ == "__main__":
    OBJECTS.mkdir(exist_ok=True)
    for name in STATES:
        (OBJECTS / f"{name}.yaml").write_text(text(made(name)), "utf-8")
