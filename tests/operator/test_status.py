"""What the status says, and the conditions by which tools read it."""

from __future__ import annotations

import pytest
from builders import World, a_job
from rlhf_api.job import RLHFJob
from rlhf_operator.conditions import KINDS
from rlhf_operator.messages import LIMIT, redacted
from rlhf_operator.observed import Progress


def conditions(world: World) -> dict[str, str]:
    return {item.type: item.status for item in world.status.conditions if item.type in KINDS}


def kstatus(world: World) -> str:
    """The rules of kstatus for a kind that it does not know, in their order."""
    if world.status.observed_generation != world.job.metadata.generation:
        return "InProgress"
    held = {item.type: item.status for item in world.status.conditions}
    if held.get("Reconciling") == "True":
        return "InProgress"
    if held.get("Stalled") == "True":
        return "Failed"
    return "Current" if held.get("Ready", "True") == "True" else "InProgress"


TABLE = {
    "running": {"Ready": "False", "Reconciling": "True", "Stalled": "False", "Suspended": "False"},
    "done": {"Ready": "True", "Reconciling": "False", "Stalled": "False", "Suspended": "False"},
    "failed": {"Ready": "False", "Reconciling": "False", "Stalled": "True", "Suspended": "False"},
    "suspended": {"Ready": "False", "Reconciling": "False", "Stalled": "False",
                  "Suspended": "True"},
}  # fmt: skip


def running() -> World:
    return World(a_job().build()).up_to("sft")


def done() -> World:
    return World(a_job().build()).finish()


def failed() -> World:
    return running().fails("sft", 64)


def suspended() -> World:
    world = running().edit(a_job().with_spec("suspend", True))
    world.settle()
    world.gone().settle()
    return world


WORLDS = {"running": running, "done": done, "failed": failed, "suspended": suspended}


@pytest.mark.parametrize("state", list(WORLDS))
def test_conditions_are_those_that_gitops_tools_read(state: str) -> None:
    assert conditions(WORLDS[state]()) == TABLE[state]


@pytest.mark.parametrize(
    ("state", "health"),
    [
        ("running", "InProgress"),
        ("done", "Current"),
        ("failed", "Failed"),
        ("suspended", "InProgress"),
    ],
)
def test_kstatus_reads_the_state_of_a_job(state: str, health: str) -> None:
    assert kstatus(WORLDS[state]()) == health


def test_an_edit_is_in_progress_until_it_has_been_seen() -> None:
    world = done()
    metadata = world.job.metadata.model_copy(update={"generation": 2})
    world.job = world.job.model_copy(update={"metadata": metadata})
    assert kstatus(world) == "InProgress"
    world.settle()
    assert kstatus(world) == "Current"


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("running", "Running"),
        ("done", "Succeeded"),
        ("failed", "Failed"),
        ("suspended", "Suspended"),
    ],
)
def test_the_phase_is_one_word(state: str, phase: str) -> None:
    assert WORLDS[state]().status.phase == phase


def test_the_phase_tells_a_job_that_waits_from_one_that_runs() -> None:
    """`kubectl get` shows no reason: a job that holds no device is not to look busy."""
    job = a_job().with_spec("stages.reward.gate", {"approval": True}).only("sft", "reward", "ppo")
    world = World(job.build()).up_to("reward")
    assert world.status.phase == "Running"
    world.becomes("reward", "Pending", node=None, reason="Unschedulable", message="0/1").settle()
    assert world.status.phase == "Waiting"
    world.becomes("reward", "Running", node="node-a", reason=None, message="").settle()
    world.fails("reward", 75)
    assert (world.status.phase, world.condition("Ready")[1]) == ("Waiting", "BackingOff")
    world.after(minutes=1).settle()
    world.runs("reward").settle()
    assert world.status.phase == "Running"
    world.succeeds("reward")
    assert (world.status.phase, world.condition("Ready")[1]) == ("Waiting", "AwaitingApproval")


def test_a_first_pass_says_that_it_has_seen_the_job() -> None:
    world = World(a_job().build())
    world.reconcile()
    assert world.status.observed_generation == 1
    assert world.status.phase == "Pending"
    assert conditions(world) == TABLE["running"]


def test_a_transition_time_moves_only_with_the_status() -> None:
    world = running()
    before = turned(world)
    world.after(minutes=5).succeeds("sft")
    after = turned(world)
    assert before == after
    world.after(minutes=5).finish()
    moved = turned(world)
    assert {kind for kind in after if after[kind] != moved[kind]} == {"Ready", "Reconciling"}


def turned(world: World) -> dict[str, str]:
    return {c.type: c.last_transition_time for c in world.status.conditions if c.type in KINDS}


def test_a_running_stage_shows_attempt_hash_start_and_progress() -> None:
    world = running()
    world.progress["sft", 1] = Progress(41.5, 90.0, {"train/loss": 2.5})
    world.after(minutes=1).reconcile()
    sft = world.stage("sft")
    assert (sft.phase, sft.attempt, sft.start_time) == ("Running", 1, "2026-01-31T12:00:00Z")
    assert sft.hash is not None
    assert sft.hash.startswith("sha256:")
    assert (sft.progress_percent, sft.remaining_seconds) == (41.5, 90.0)
    assert sft.metrics == {"train/loss": 2.5}


def test_reports_of_an_older_attempt_are_not_shown() -> None:
    world = running().fails("sft", 75).after(minutes=1)
    world.settle()
    world.progress["sft", 1] = Progress(99.0)
    world.reconcile()
    assert world.stage("sft").progress_percent is None


def test_a_finished_stage_shows_checkpoint_metrics_and_times() -> None:
    world = running().after(minutes=2).succeeds("sft", **{"eval/loss": 1.25})
    sft = world.stage("sft")
    assert sft.phase == "Succeeded"
    assert (sft.reason, sft.message) == (None, None)
    assert sft.completion_time == "2026-01-31T12:02:00Z"
    assert sft.checkpoint is not None
    assert sft.checkpoint.uri.endswith("attempt-1/output")
    assert sft.metrics == {"eval/loss": 1.25}
    assert sft.progress_percent == 100.0
    assert sft.finished[0].checkpoint == sft.checkpoint


def test_prepare_fills_in_the_digests_of_the_sources() -> None:
    world = World(a_job().build())
    world.settle()
    world.succeeds("prepare")
    assert world.status.sources["stages.sft.data"] == "sha256:sft.jsonl"


def test_pods_that_wait_for_a_node_say_why() -> None:
    world = running()
    world.becomes("sft", "Pending", reason="Unschedulable", message="0/3 nodes have 8 GPUs")
    world.reconcile()
    assert world.stage("sft").phase == "Pending"
    assert "0/3 nodes have 8 GPUs" in (world.stage("sft").message or "")


def test_a_status_survives_being_written_and_read() -> None:
    job = done().job
    assert RLHFJob.parse(job.to_dict()) == job


def test_messages_are_short_and_carry_no_secrets() -> None:
    text = redacted(
        "x" * 5000
        + " failed with token=abc123 hf_"
        + "A" * 34
        + " https://u:p@host/\x00\x1b\x9b\u202e"
    )
    assert len(text.encode()) <= LIMIT
    assert text.endswith("failed with token=[redacted] [redacted] https://[redacted]@host/")
