"""Events: once for each transition, from the difference of two statuses."""

from __future__ import annotations

from typing import Any

from builders import NOON, World, a_job
from rlhf_api.status import JobStatus
from rlhf_operator.event_object import event_object
from rlhf_operator.events import Event, events
from rlhf_operator.observed import Pod, Progress


class Told(World):
    """A world that keeps what each written status tells."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: list[Event] = []

    def reconcile(self) -> Any:
        before = self.job.status
        actions = super().reconcile()
        self.told += events(before, self.status)
        return actions

    def reasons(self, stage: str | None = None) -> list[str]:
        return [event.reason for event in self.told if stage in (None, event.stage)]

    def last(self, reason: str) -> Event:
        return [event for event in self.told if event.reason == reason][-1]


def training() -> Told:
    world = Told(a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 4}).build())
    world.up_to("sft")
    return world


def test_a_stage_tells_each_step_once() -> None:
    world = Told(a_job().only("sft").build())
    world.settle()
    world.runs("prepare").settle()
    world.succeeds("prepare")
    world.becomes("sft", "Pending", reason="Unschedulable", message="0/1 nodes").settle()
    world.becomes("sft", "Pending", node="node-a", reason=None, message="").settle()
    world.runs("sft").settle()
    world.after(minutes=1).succeeds("sft")
    assert world.reasons("sft") == [
        "Queued", "GangAdmitted", "StageStarted", "StageSucceeded",
    ]  # fmt: skip
    assert world.reasons().count("Succeeded") == 1


def test_events_are_named_in_the_order_in_which_they_happened() -> None:
    """`kubectl describe` sorts by a field that events.k8s.io leaves empty, and so shows them by
    name."""
    happened = [Event("Normal", "Queued", ""), Event("Normal", "StageStarted", "")] * 6
    names = []
    for version in ("99", "100"):
        meta = {"name": "tiny", "namespace": "a", "uid": "u", "resourceVersion": version}
        manifest = {"apiVersion": "rlhf.dev/v1alpha1", "metadata": meta}
        made = (event_object(manifest, event, n, "me", NOON) for n, event in enumerate(happened))
        names += [event["metadata"]["name"] for event in made]
    assert names == sorted(set(names))


def test_a_stage_that_was_never_seen_running_still_started() -> None:
    world = Told(a_job().only("sft").build())
    world.settle()
    world.succeeds("prepare")
    assert world.reasons("prepare") == ["StageStarted", "StageSucceeded"]


def test_an_attempt_is_told_to_run_once_also_where_it_follows_a_disruption_in_one_write() -> None:
    world = training()
    world.fails("sft", 137, is_disrupted=True)
    assert world.stage("sft").attempt == 2
    world.settle()
    world.runs("sft").settle()
    started = [event.message for event in world.told if event.reason == "StageStarted"]
    assert started[-2:] == ["sft: attempt 1 runs.", "sft: attempt 2 runs."]
    assert len(started) == 3  # prepare, and these


def test_pods_that_find_their_place_at_once_are_not_told_as_queued() -> None:
    world = Told(a_job().only("sft").build())
    world.settle()
    world.becomes("prepare", "Pending", node=None, reason=None, message="").settle()
    world.becomes("prepare", "Pending", node="node-a", reason=None, message="").settle()
    assert world.reasons("prepare") == ["GangAdmitted"]


def test_a_save_is_told_once_and_noise_is_not() -> None:
    world = training()
    for step in (0, 100, 100, 50, 200):
        world.progress["sft", 1] = Progress(10.0, None, {"checkpoint/step": float(step)})
        world.after(seconds=10).reconcile()
    assert world.reasons("sft").count("CheckpointSaved") == 2
    assert world.last("CheckpointSaved").message == "sft: step 200 is saved."


def test_an_alarm_rings_once_and_again_only_after_it_has_ended() -> None:
    world = Told(a_job().with_spec("stages.ppo.maxKl", 10.0).build())
    world.up_to("ppo")
    for kl in (5.0, 8.5, 7.9, 8.1, 6.0, 9.0):
        world.progress["ppo", 1] = Progress(10.0, None, {"ppo/kl": kl})
        world.after(seconds=10).reconcile()
    assert world.reasons("ppo").count("MetricAlarm") == 2
    assert world.last("MetricAlarm") == Event(
        "Warning",
        "MetricAlarm",
        "ppo: KLNearLimit: KL is above 80% of maxKl, at which the stage ends.",
        "ppo",
    )


def test_a_failure_names_ranks_node_pod_exit_reason_and_last_lines() -> None:
    world = training()
    attempt = world.current("sft")
    killed = Pod("tiny-sft-1-1", 1, "Failed", 137, "OOMKilled", "step 7\nKilled", node="node-b")
    pods = (attempt.pods[0]._replace(phase="Succeeded"), killed)
    world.attempts["sft", 1] = attempt._replace(pods=pods, condition="Failed")
    world.reconcile()
    assert world.last("AttemptFault").message == (
        "sft: attempt 1 ended: ranks 4-7 on node-b (tiny-sft-1-1): exit 137, OOMKilled. "
        "step 7\nKilled"
    )


def test_a_stage_that_diverges_twice_names_the_rank_and_node_of_the_second_time() -> None:
    world = Told(a_job().build())
    world.up_to("sft")
    for node in ("node-a", "node-b"):
        world.becomes("sft", "Running", node=node).fails("sft", 66, message="loss is NaN")
        world.after(minutes=10).settle()
    told = "rank 0 on node-b (tiny-sft-2-0): exit 66, Diverged. loss is NaN"
    assert world.last("StageFailed").message == f"sft: {told}"
    assert world.last("Failed").message == f"sft: {told}"


def test_the_last_failure_is_told_as_the_end_of_the_stage() -> None:
    world = Told(a_job().with_spec("stages.sft.retry", {"maxFaults": 0}).build())
    world.up_to("sft")
    world.becomes("sft", "Running", node="node-b").fails("sft", 75, message="peer lost")
    assert world.reasons("sft")[-2:] == ["AttemptFault", "StageFailed"]
    assert "rank 0 on node-b (tiny-sft-1-0): exit 75" in world.last("StageFailed").message


def test_an_earlier_result_is_told_as_skipped() -> None:
    world = Told(a_job().build())
    world.finish()
    world.edit(a_job().with_spec("stages.ppo.kl", {"coef": 0.5})).finish()
    world.told.clear()
    world.edit(a_job()).settle()
    assert world.reasons("ppo") == ["StageSkipped"]


def test_an_edit_that_ends_an_attempt_is_told_once_and_as_no_warning() -> None:
    world = training()
    world.edit(a_job().with_spec("stages.sft.microBatchSize", 1)).settle()
    assert world.last("AttemptStopped").type == "Normal"
    assert "SettingsChanged" in world.last("AttemptStopped").message
    assert "SettingsChanged" not in world.reasons("sft")


def test_pods_that_cannot_start_are_a_warning_once() -> None:
    world = training()
    pull = {"reason": "ErrImagePull", "message": "pull of x: 401"}
    world.becomes("sft", "Pending", node="node-a", **pull).settle()
    back_off = {"reason": "ImagePullBackOff"}
    text = 'Back-off pulling image "x": ErrImagePull: pull of x: 401'
    before = world.status
    world.becomes("sft", "Pending", message=text, **back_off).after(minutes=2).settle()
    assert world.status == before
    assert world.reasons("sft").count("ImagePullFailed") == 1
    assert world.last("ImagePullFailed").type == "Warning"


def test_an_unchanged_status_has_no_events() -> None:
    world = World(a_job().build()).finish()
    assert events(world.status, world.status) == []
    assert events(None, JobStatus()) == []
