"""What the plan does next, case by case."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from builders import NOON, JobBuilder, World, a_job, a_result, begun
from rlhf_api.run import GANG_INCOMPLETE, PEER_LOST, StageResult
from rlhf_api.status import JobStatus, SavedStep
from rlhf_operator.events import events
from rlhf_operator.expiry import next_pass
from rlhf_operator.observed import Pod, Progress
from rlhf_operator.plan import BeginAttempt, CreateChildren, DeleteChildren, plan
from rlhf_operator.progress import parse_report

RETRY_SFT = "rlhf.dev/retry-sft"


def test_prepare_comes_first_and_alone() -> None:
    assert begun(World(a_job().build()).plan()) == ["prepare"]


def test_an_attempt_is_written_to_the_status_before_its_children_are_made() -> None:
    world = World(a_job().build())
    (first,) = world.reconcile()
    assert isinstance(first, BeginAttempt)
    assert world.stage("prepare").attempt == 1
    assert not world.attempts
    (second,) = world.reconcile()
    assert isinstance(second, CreateChildren)
    assert (second.stage, second.attempt) == ("prepare", 1)


def test_children_are_made_again_where_a_crash_left_none() -> None:
    world = World(a_job().build())
    world.reconcile()
    assert world.plan() == world.plan()
    assert isinstance(world.plan()[0], CreateChildren)


def test_children_that_are_not_whole_are_completed() -> None:
    world = World(a_job().build())
    world.settle()
    attempt = world.current("prepare")
    world.attempts["prepare", 1] = attempt._replace(is_whole=False)
    assert [type(action) for action in world.plan()] == [CreateChildren]


def test_nothing_is_done_while_pods_run() -> None:
    world = World(a_job().build()).up_to("sft")
    assert world.plan() == []


def test_stages_follow_their_edges_and_branches_run_side_by_side() -> None:
    world = World(a_job().build())
    world.settle()
    world.succeeds("prepare")
    assert set(live_stages(world)) == {"sft"}
    world.succeeds("sft")
    assert set(live_stages(world)) == {"reward", "dpo"}
    world.succeeds("reward")
    assert set(live_stages(world)) == {"dpo", "ppo"}
    world.succeeds("ppo", "dpo")
    assert world.status.phase == "Succeeded"


def live_stages(world: World) -> list[str]:
    return [attempt.stage for attempt in world.attempts.values() if attempt.is_live]


def test_a_finished_job_is_left_alone() -> None:
    world = World(a_job().build()).finish()
    before = world.job
    assert world.after(days=30).reconcile() == []
    assert world.job == before


def test_finished_stages_stay_finished_when_their_children_are_gone() -> None:
    world = World(a_job().build()).finish()
    world.attempts.clear()
    assert world.settle() == []
    assert world.status.phase == "Succeeded"


def test_one_changed_ppo_field_runs_ppo_alone() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_spec("stages.ppo.kl", {"coef": 0.5}))
    assert begun(world.settle()) == ["ppo"]
    assert world.stage("ppo").attempt == 2


def test_changed_sft_data_runs_everything_after_it() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_spec("stages.sft.data.source", "data/other.jsonl"))
    assert begun(world.settle()) == ["prepare"]
    world.finish()
    assert {name: world.stage(name).attempt for name in world.order()} == {
        "prepare": 2, "sft": 2, "reward": 2, "ppo": 2, "dpo": 2,
    }  # fmt: skip


def test_a_moved_file_with_the_same_content_runs_prepare_alone() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_spec("stages.sft.data.source", "moved/sft.jsonl")).finish()
    assert world.stage("prepare").attempt == 2
    assert world.stage("sft").attempt == 1


def test_a_changed_local_file_is_prepared_again() -> None:
    world = World(a_job().build())
    world.fingerprints = {"data/sft.jsonl": "before"}
    world.finish()
    world.fingerprints = {"data/sft.jsonl": "after"}
    assert begun(world.plan()) == ["prepare"]


def test_settings_that_come_back_take_the_earlier_result() -> None:
    changed = a_job().with_spec("stages.ppo.kl", {"coef": 0.5})
    world = World(a_job().build()).finish()
    first = world.stage("ppo").checkpoint
    world.edit(changed).finish()
    assert world.stage("ppo").checkpoint != first
    world.edit(a_job())
    assert world.settle() == []
    assert world.stage("ppo").checkpoint == first
    assert world.stage("ppo").attempt == 2
    assert world.status.phase == "Succeeded"


def test_attempt_numbers_go_on_after_an_earlier_result_was_taken() -> None:
    world = World(a_job().build()).finish()
    for coef in (0.5, 0.02, 0.7):
        world.edit(a_job().with_spec("stages.ppo.kl", {"coef": coef})).finish()
    assert world.stage("ppo").attempt == 3


@pytest.mark.parametrize("code", [1, 65, 75, 137, 143, 255])
def test_a_fault_is_retried_after_a_pause(code: int) -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", code)
    assert world.stage("sft").faults == 1
    assert world.stage("sft").reason == "BackingOff"
    assert world.after(seconds=9).plan() == []
    world.after(seconds=1)
    assert begun(world.plan()) == ["sft"]
    world.settle()
    assert world.stage("sft").attempt == 2
    assert [attempt.number for attempt in world.live("sft")] == [2]


def test_the_pause_doubles_up_to_five_minutes() -> None:
    job = a_job().with_spec("stages.sft.retry", {"maxFaults": 9}).build()
    world = World(job).up_to("sft")
    pauses = []
    for _ in range(7):
        world.fails("sft", 75)
        at = world.now
        while not begun(world.plan()):
            world.after(seconds=5)
        pauses.append((world.now - at).total_seconds())
        world.settle()
        world.runs("sft")
    assert pauses == [10, 20, 40, 80, 160, 300, 300]


def test_faults_beyond_the_budget_are_final() -> None:
    world = World(a_job().with_spec("stages.sft.retry", {"maxFaults": 1}).build()).up_to("sft")
    world.fails("sft", 75).after(seconds=10).settle()
    world.fails("sft", 75)
    assert world.stage("sft").phase == "Failed"
    assert world.after(days=1).settle() == []
    assert world.stage("sft").faults == 2


def test_a_larger_budget_revives_a_failed_stage() -> None:
    world = World(a_job().with_spec("stages.sft.retry", {"maxFaults": 0}).build()).up_to("sft")
    world.fails("sft", 75)
    world.edit(a_job().with_spec("stages.sft.retry", {"maxFaults": 1})).after(minutes=1)
    assert begun(world.settle()) == ["sft"]


@pytest.mark.parametrize("code", [1, 137, 143])
def test_disruptions_are_free(code: int) -> None:
    world = World(a_job().with_spec("stages.sft.retry", {"maxFaults": 0}).build()).up_to("sft")
    world.fails("sft", code, is_disrupted=True)
    assert world.stage("sft").faults == 0
    assert world.stage("sft").disruptions == 1
    world.settle()
    assert world.stage("sft").attempt == 2


def test_repeated_disruptions_are_spaced_out() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 137, is_disrupted=True)
    world.settle()
    world.fails("sft", 137, is_disrupted=True)
    assert world.settle() == []
    assert world.stage("sft").reason == "BackingOff"


def test_a_configuration_error_is_never_retried() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 64)
    assert world.stage("sft").phase == "Failed"
    assert world.after(days=1).settle() == []


def test_a_configuration_error_outranks_a_disruption() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 64, is_disrupted=True)
    assert world.stage("sft").phase == "Failed"


def test_a_configuration_error_is_retried_when_only_operational_settings_change() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 64)
    world.edit(a_job().with_spec("resources", {"nodes": 2}))
    assert begun(world.settle()) == ["sft"]


def failed_for_good(stage: str = "sft", **retry: int) -> World:
    """Its first attempt is final, or has spent the budget that `retry` sets."""
    world = World(a_job().with_spec(f"stages.{stage}.retry", retry).build()).up_to(stage)
    return world.fails(stage, 75 if retry else 64)


@pytest.mark.parametrize("retry", [{}, {"maxFaults": 0}], ids=["final", "budget spent"])
def test_a_person_s_retry_revives_a_failed_stage(retry: dict[str, int]) -> None:
    world = failed_for_good(**retry)
    assert world.condition("Stalled")[0] == "True"
    world.edit(a_job().with_spec("stages.sft.retry", retry).with_annotation(RETRY_SFT, "1"))
    before = world.stage("sft").hash
    assert begun(world.settle()) == ["sft"]
    sft = world.stage("sft")
    assert (sft.attempt, sft.faults, sft.hash) == (2, 0, before)
    assert world.condition("Reconciling")[0] == "True"


@pytest.mark.parametrize("value", ["0", "2", "", "1 ", "please"])
def test_a_retry_that_answers_another_attempt_does_nothing(value: str) -> None:
    world = failed_for_good()
    world.edit(a_job().with_annotation(RETRY_SFT, value))
    assert world.after(days=1).settle() == []


def test_a_retry_answers_one_failure_only() -> None:
    world = failed_for_good()
    world.edit(a_job().with_annotation(RETRY_SFT, "1")).settle()
    world.fails("sft", 64)
    assert world.stage("sft").phase == "Failed"
    assert world.after(days=1).settle() == []


def test_a_retry_has_a_fresh_budget_of_faults_and_divergences() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 66).after(seconds=10).settle()
    world.fails("sft", 66)
    world.edit(a_job().with_annotation(RETRY_SFT, "2")).settle()
    world.fails("sft", 66)
    assert (world.stage("sft").reason, world.stage("sft").faults) == ("BackingOff", 1)


def test_a_retry_ends_the_pause_after_a_fault() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 75)
    assert world.settle() == []
    world.edit(a_job().with_annotation(RETRY_SFT, "1"))
    assert begun(world.settle()) == ["sft"]


def test_a_retry_leaves_other_stages_alone() -> None:
    world = World(a_job().build()).up_to("reward", "dpo")
    world.fails("reward", 64)
    world.edit(a_job().with_annotation("rlhf.dev/retry-reward", "1"))
    assert begun(world.settle()) == ["reward"]
    assert world.stage("dpo").attempt == 1


def test_a_retry_of_prepare_lets_what_it_held_back_go_on() -> None:
    world = World(a_job().build())
    world.settle()
    world.fails("prepare", 64)
    assert world.condition("Stalled") == ("True", "ConfigurationError")
    world.edit(a_job().with_annotation("rlhf.dev/retry-prepare", "1")).finish()
    assert world.stage("prepare").attempt == 2


def test_a_retry_waits_while_the_job_is_suspended() -> None:
    world = failed_for_good()
    suspended = a_job().with_annotation(RETRY_SFT, "1").with_spec("suspend", True)
    assert begun(world.edit(suspended).settle()) == []
    assert begun(world.edit(a_job().with_annotation(RETRY_SFT, "1")).settle()) == ["sft"]


def test_a_retry_does_not_repeat_what_succeeded() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_annotation(RETRY_SFT, "1"))
    assert world.settle() == []


def test_a_divergence_on_other_settings_is_the_first_of_them() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 66)
    world.edit(a_job().with_spec("stages.sft.learningRate", 1e-6)).settle()
    world.runs("sft").settle()
    world.fails("sft", 66)
    assert world.stage("sft").reason == "BackingOff"


def test_divergence_is_tried_once_more_and_then_final() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 66).after(seconds=10).settle()
    assert world.stage("sft").attempt == 2
    world.fails("sft", 66)
    assert world.stage("sft").phase == "Failed"
    assert world.after(days=1).settle() == []


def test_exit_code_0_without_a_checkpoint_is_a_fault() -> None:
    world = World(a_job().build()).up_to("sft")
    world.becomes("sft", "Succeeded", exit_code=0)
    world.reconcile()
    assert world.stage("sft").faults == 1
    assert world.stage("sft").ended is not None
    assert world.stage("sft").ended.reason == "NoResult"


def test_an_end_is_counted_once() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 75)
    for _ in range(5):
        world.reconcile()
    assert world.stage("sft").faults == 1


def test_a_deadline_is_a_fault_whatever_the_pods_say() -> None:
    world = World(a_job().build()).up_to("sft")
    world.attempts["sft", 1] = world.current("sft")._replace(reason="DeadlineExceeded")
    world.fails("sft", 143)
    assert world.stage("sft").faults == 1
    assert world.stage("sft").ended is not None
    assert world.stage("sft").ended.reason == "DeadlineExceeded"


def test_pods_that_somebody_deleted_are_a_disruption() -> None:
    world = World(a_job().build()).up_to("sft")
    world.vanishes("sft").settle()
    assert world.stage("sft").reason == "PodsMissing"
    assert world.stage("sft").disruptions == 0
    world.after(seconds=5).settle()
    assert world.stage("sft").disruptions == 1
    assert world.stage("sft").attempt == 2
    assert world.stage("sft").faults == 0


def test_a_pod_that_has_lost_its_labels_trains_on_and_is_told_of_once() -> None:
    world = World(a_job().build()).up_to("sft")
    world.runs("sft").settle()
    before, attempt = world.status, world.current("sft")
    world.attempts["sft", 1] = attempt._replace(unlabelled=(attempt.pods[0].name,))
    assert world.settle() == []
    assert world.condition("Reconciling") == ("True", "LabelsLost")
    assert world.stage("sft").phase == "Running"
    (told,) = events(before, world.status)
    assert (told.type, told.reason) == ("Warning", "LabelsLost")
    labels = "rlhf.dev/job=tiny rlhf.dev/stage=sft rlhf.dev/attempt=1 --overwrite"
    command = f"kubectl label pods -l job-name=tiny-sft-1 -n default {labels}"
    assert told.message.endswith(command)
    world.attempts["sft", 1] = attempt
    world.settle()
    assert world.condition("Reconciling") == ("True", "Training")


def test_pods_that_their_job_has_left_to_themselves_end_before_anything_new_starts() -> None:
    """Nobody else would end them, and they would outlive the job with their devices."""
    world = World(a_job().build()).up_to("sft")
    orphaned = world.current("sft")._replace(is_terminating=True, is_orphaned=True)
    world.attempts["sft", 1] = orphaned
    assert world.plan() == [DeleteChildren("sft", 1, "Orphaned")]
    world.attempts["sft", 1] = orphaned._replace(is_orphaned=False)
    assert world.plan() == []
    world.vanishes("sft").settle()
    world.after(seconds=5).settle()
    assert (world.stage("sft").attempt, world.stage("sft").disruptions) == (2, 1)


def test_a_new_attempt_waits_until_every_old_pod_has_ended() -> None:
    world = World(a_job().build()).up_to("sft")
    attempt = world.current("sft")
    straggler = attempt.pods[0]._replace(name="tiny-sft-1-1", completion_index=1)
    failed = attempt.pods[0]._replace(phase="Failed", exit_code=75)
    world.attempts["sft", 1] = attempt._replace(
        pods=(failed, straggler), size=2, condition="Failed"
    )
    world.after(minutes=10)
    assert world.settle() == []
    assert world.stage("sft").attempt == 1
    world.becomes("sft", "Failed", exit_code=75).settle()
    assert begun(world.after(minutes=10).settle()) == ["sft"]


def test_a_lost_node_means_waiting() -> None:
    world = World(a_job().build()).up_to("sft")
    world.becomes("sft", "Unknown", node="node-7")
    assert world.after(hours=5).settle() == []
    assert world.stage("sft").reason == "NodeLost"
    assert "node-7" in (world.stage("sft").message or "")


def test_a_pod_that_runs_on_for_a_container_of_others_says_so() -> None:
    world = World(a_job().build()).up_to("sft")
    assert world.becomes("sft", "Running", exit_code=0, outlived_by=("istio-proxy",)).settle() == []
    assert world.stage("sft").phase == "Running"
    assert world.condition("Reconciling") == ("True", "ContainersLeft")
    assert "istio-proxy" in (world.stage("sft").message or "")


def test_what_a_lost_node_does_to_its_peers_costs_no_budget() -> None:
    world = World(a_job().with_spec("resources", {"nodes": 2}).build()).up_to("sft")
    attempt = world.current("sft")
    peer = attempt.pods[0]._replace(phase="Failed", exit_code=75, node="node-1")
    lost = Pod("tiny-sft-1-1", 1, phase="Unknown", node="node-7")
    world.attempts["sft", 1] = attempt._replace(pods=(peer, lost), size=2, condition="Failed")
    world.settle()
    assert world.stage("sft").reason == "NodeLost"
    evicted = lost._replace(phase="Failed", is_disrupted=True)  # for a moment
    world.attempts["sft", 1] = attempt._replace(pods=(peer, evicted), size=2)
    world.settle()
    world.attempts["sft", 1] = attempt._replace(pods=(peer,), size=2, condition="Failed")
    world.reconcile()
    status = world.stage("sft")
    assert (status.faults, status.disruptions) == (0, 1)
    assert status.ended
    assert (status.ended.kind, status.ended.reason) == ("Disruption", "NodeLost")


def test_a_fault_after_a_lost_node_came_back_is_a_fault() -> None:
    world = World(a_job().build()).up_to("sft")
    world.becomes("sft", "Unknown").settle()
    world.becomes("sft", "Running").settle()
    world.fails("sft", 1)
    assert (world.stage("sft").faults, world.stage("sft").disruptions) == (1, 0)


@pytest.mark.parametrize(("all_ran", "kind"), [(False, "Disruption"), (True, "Fault")])
def test_a_gang_of_which_a_pod_never_ran_costs_no_budget(all_ran: bool, kind: str) -> None:
    """It has no image, or no node; where all ran, they could not reach each other."""
    world = World(a_job().only("sft").with_spec("resources", {"nodes": 2}).build())
    world.settle()
    attempt = world.succeeds("prepare").current("sft")
    pods = (attempt.pods[0]._replace(phase="Running"), Pod("tiny-sft-1-1", 1))
    if all_ran:
        pods = (pods[0], pods[1]._replace(phase="Running"))
    world.attempts["sft", 1] = attempt._replace(size=2, pods=pods)
    world.settle()
    world.attempts["sft", 1] = attempt._replace(size=2, pods=pods[:1])  # the other one was deleted
    told = StageResult(exit_code=75, reason=GANG_INCOMPLETE, message="missing: 1")
    ended = world.fails("sft", 75, result=told).stage("sft").ended
    assert ended
    assert (ended.kind, ended.reason) == (kind, GANG_INCOMPLETE)


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_rank_that_lost_another_is_not_the_cause_of_the_end(seconds: float) -> None:
    """Ends are told in whole seconds, and by the clocks of different nodes."""
    world = World(a_job().only("sft").with_spec("resources", {"nodes": 2}).build())
    world.settle()
    attempt = world.succeeds("prepare").current("sft")
    lost = StageResult(exit_code=75, reason=PEER_LOST, message="another rank was lost")
    diverged = StageResult(exit_code=66, reason="Diverged", message="loss is nan at step 7")
    at = NOON.timestamp()
    pods = (
        Pod("tiny-sft-1-0", 0, "Failed", 75, finished_at=at, result=lost),
        Pod("tiny-sft-1-1", 1, "Failed", 66, finished_at=at + seconds, result=diverged),
    )
    world.attempts["sft", 1] = attempt._replace(size=2, pods=pods, condition="Failed")
    world.reconcile()
    ended = world.stage("sft").ended
    assert ended
    assert (ended.reason, ended.exit_code, ended.pod) == ("Diverged", 66, "tiny-sft-1-1")


def test_a_failed_branch_does_not_stop_the_other() -> None:
    world = World(a_job().build())
    world.settle()
    world.succeeds("prepare").succeeds("sft")
    world.fails("dpo", 64)
    assert world.condition("Reconciling")[0] == "True"
    assert world.condition("Stalled")[0] == "False"
    world.succeeds("reward").succeeds("ppo")
    assert world.stage("ppo").phase == "Succeeded"
    assert world.stage("dpo").phase == "Failed"
    assert world.condition("Stalled")[0] == "True"


def test_a_failed_stage_blocks_what_needs_it() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 64)
    assert {world.stage(name).reason for name in ("reward", "ppo", "dpo")} == {"ParentFailed"}
    assert world.condition("Stalled") == ("True", "ConfigurationError")


def test_suspending_stops_the_children_and_keeps_results() -> None:
    world = World(a_job().build()).up_to("reward")
    actions = world.edit(a_job().with_spec("suspend", True)).reconcile()
    assert {(a.stage, type(a)) for a in actions} == {
        ("reward", DeleteChildren), ("dpo", DeleteChildren),
    }  # fmt: skip
    world.gone()
    assert world.settle() == []
    assert world.stage("sft").phase == "Succeeded"
    assert world.stage("reward").phase == "Suspended"
    assert world.stage("reward").disruptions == world.stage("reward").faults == 0


def test_a_deleted_job_that_a_finalizer_keeps_holds_no_pods() -> None:
    world = World(a_job().build()).up_to("reward")
    gone = {"deletion_timestamp": "2026-01-31T12:00:00Z", "finalizers": ["example.org/archive"]}
    world.job = world.job.model_copy(
        update={"metadata": world.job.metadata.model_copy(update=gone)}
    )
    actions = world.reconcile()
    assert {(a.stage, type(a)) for a in actions} == {
        ("reward", DeleteChildren), ("dpo", DeleteChildren),
    }  # fmt: skip
    assert world.gone().settle() == []
    assert world.condition("Suspended") == ("True", "Deleting")
    assert "example.org/archive" in (world.stage("reward").message or "")


def test_resuming_starts_a_new_attempt_on_the_same_hash() -> None:
    world = World(a_job().build()).up_to("reward")
    before = world.stage("reward").hash
    world.edit(a_job().with_spec("suspend", True)).settle()
    assert begun(world.edit(a_job()).plan()) == []  # old pods are still ending
    assert set(begun(world.gone().settle())) == {"reward", "dpo"}
    assert world.stage("reward").hash == before
    assert world.stage("reward").attempt == 2


def test_changing_nodes_in_mid_stage_restarts_it_on_the_same_hash() -> None:
    world = World(a_job().build()).up_to("sft")
    before = world.stage("sft")
    world.edit(a_job().with_spec("resources", {"nodes": 4})).settle()
    assert world.stage("sft").attempt == 1
    assert not begun(world.plan())
    world.gone().settle()
    assert world.stage("sft").attempt == 2
    assert world.stage("sft").hash == before.hash
    assert world.stage("sft").faults == 0


def test_changing_a_hyper_parameter_in_mid_stage_starts_it_afresh() -> None:
    world = World(a_job().build()).up_to("sft")
    before = world.stage("sft").hash
    world.edit(a_job().with_spec("stages.sft.learningRate", 1e-3)).settle()
    world.gone().settle()
    assert world.stage("sft").attempt == 2
    assert world.stage("sft").hash != before


def test_changing_the_budget_or_a_gate_leaves_a_running_attempt_alone() -> None:
    world = World(a_job().build()).up_to("sft")
    edited = a_job().with_spec("stages.sft.retry", {"maxFaults": 7})
    edited.with_spec("stages.sft.gate", {"metric": "eval/loss", "max": 3.0})
    assert world.edit(edited).settle() == []


def test_an_attempt_whose_parent_has_to_run_again_stops() -> None:
    world = World(a_job().build()).up_to("ppo")
    world.edit(a_job().with_spec("stages.sft.learningRate", 1e-3))
    actions = world.reconcile()
    assert DeleteChildren("ppo", 1, "InputsChanged") in actions
    assert begun(actions) == ["sft"]


def test_a_running_attempt_goes_on_while_sources_are_looked_at_again() -> None:
    world = World(a_job().build()).up_to("sft")
    world.edit(a_job().with_spec("stages.sft.data.source", "moved/sft.jsonl"))
    assert begun(world.settle()) == ["prepare"]
    assert world.live("sft")
    world.succeeds("prepare")
    assert world.stage("sft").attempt == 1
    assert world.live("sft")


def test_an_attempt_that_was_called_off_before_it_had_children_gets_none() -> None:
    world = World(a_job().build())
    world.reconcile()
    world.edit(a_job().with_spec("suspend", True))
    assert world.settle() == []
    assert not world.attempts


def test_what_is_left_of_an_attempt_without_job_and_pods_goes() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 75)
    left = world.observed()._replace(left_over=(("prepare", 1), ("sft", 1)))
    world.after(minutes=1).settle()
    after_the_next_began = world.observed()._replace(left_over=(("sft", 1), ("sft", 2)))
    assert DeleteChildren("sft", 1, "Superseded") in plan(world.assess(left))
    assert plan(world.assess(after_the_next_began)) == [
        DeleteChildren("sft", 1, "Superseded")  # attempt 2 is being made: its ConfigMap stays
    ]


def test_the_pods_of_a_removed_stage_end() -> None:
    world = World(a_job().build()).up_to("reward")
    world.edit(a_job().without("dpo"))
    assert DeleteChildren("dpo", 1, "StageRemoved") in world.reconcile()
    world.gone().settle()
    assert not world.live("dpo")
    assert world.live("reward")
    assert world.stage("dpo").attempt == 1


def test_a_stage_that_comes_back_goes_on_counting() -> None:
    world = World(a_job().build()).up_to("reward")
    world.edit(a_job().without("dpo")).settle()
    world.gone().succeeds("prepare")
    world.edit(a_job()).settle()
    world.succeeds("prepare")
    assert world.stage("dpo").attempt == 2
    assert world.live("dpo")


def test_a_refresh_annotation_has_the_sources_looked_at_again() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_annotation("rlhf.dev/refresh", "now"))
    assert begun(world.settle()) == ["prepare"]
    assert world.finish().stage("sft").attempt == 1


def test_a_gate_holds_the_next_stage_back() -> None:
    gate = {"metric": "eval/accuracy", "min": 0.65}
    world = World(a_job().with_spec("stages.reward.gate", gate).build()).up_to("reward")
    world.succeeds("reward", **{"eval/accuracy": 0.6})
    assert not world.live("ppo")
    assert world.stage("ppo").reason == "GateNotMet"
    assert "0.6, below 0.65" in (world.stage("ppo").message or "")
    lower = a_job().with_spec("stages.reward.gate", {"metric": "eval/accuracy", "min": 0.5})
    assert begun(world.edit(lower).settle()) == ["ppo"]


@pytest.mark.parametrize(
    ("bounds", "value", "said"),
    [
        ({"max": 2.0}, 2.5, "2.5, above 2."),
        ({"max": 2.0}, 2.0, ""),
        ({"min": 2.0}, 2.0, ""),
        ({"min": 1.0, "max": 2.0}, 0.5, "0.5, below 1."),
    ],
)
def test_a_gate_holds_at_both_of_its_bounds(
    bounds: dict[str, float], value: float, said: str
) -> None:
    gate = {"metric": "eval/loss", **bounds}
    world = World(a_job().with_spec("stages.reward.gate", gate).build()).up_to("reward")
    world.succeeds("reward", **{"eval/loss": value})
    assert bool(world.live("ppo")) is not bool(said)
    assert said in (world.stage("ppo").message or "")


def test_a_gate_on_a_metric_that_is_not_there_says_which_are() -> None:
    gate = {"metric": "eval/acuracy", "min": 0.65}
    world = World(a_job().with_spec("stages.reward.gate", gate).build()).up_to("reward")
    world.succeeds("reward", **{"eval/accuracy": 0.9})
    assert "eval/accuracy" in (world.stage("ppo").message or "")


def test_approval_names_the_result_that_was_looked_at() -> None:
    job = a_job().with_spec("stages.reward.gate", {"approval": True})
    world = World(job.build()).up_to("reward")
    world.succeeds("reward")
    assert world.stage("ppo").reason == "AwaitingApproval"
    wrong = a_job().with_spec("stages.reward.gate", {"approval": True})
    world.edit(wrong.with_annotation("rlhf.dev/approve-reward", "0" * 12))
    assert world.settle() == []
    digest = (world.stage("reward").hash or "")[7:19]
    assert digest in (world.stage("ppo").message or "")
    said = next(c.message for c in world.status.conditions if c.type == "ApprovalNeeded")
    assert "('000000000000', which approve-reward has, is another one)" in said
    right = a_job().with_spec("stages.reward.gate", {"approval": True})
    world.edit(right.with_annotation("rlhf.dev/approve-reward", digest))
    assert begun(world.settle()) == ["ppo"]


def test_clocks_may_jump_back() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 75)
    assert world.after(minutes=-1).settle() == []
    world.now = NOON
    assert begun(world.after(seconds=10).settle()) == ["sft"]


def test_the_newest_output_is_that_of_the_last_stage_whatever_the_clocks_say() -> None:
    world = World(a_job().only("sft", "dpo").build())
    world.after(hours=1).up_to("sft").succeeds("sft")
    world.after(hours=-2).succeeds("dpo")
    checkpoint = world.stage("dpo").checkpoint
    assert checkpoint is not None
    assert world.status.checkpoint == checkpoint.uri


def test_nobody_waits_for_a_clock_that_was_an_hour_ahead() -> None:
    world = World(a_job().build()).up_to("sft")
    world.after(hours=1).fails("sft", 75)
    assert begun(world.after(hours=-1).settle()) == ["sft"]
    assert world.stage("sft").faults == 1


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(("ppo",), "PrepareFailed"), (("dpo",), "PrepareFailed")],
)
def test_bad_data_fails_the_job_before_any_gpu_is_asked_for(
    stages: tuple[str, ...], expected: str
) -> None:
    world = World(a_job().build())
    world.settle()
    world.fails("prepare", 64)
    assert world.settle() == []
    assert {world.stage(name).reason for name in stages} == {expected}
    assert world.condition("Stalled")[0] == "True"


def test_a_stage_says_which_outputs_it_waits_for() -> None:
    world = World(a_job().build()).up_to("reward")
    assert world.stage("ppo").reason == "WaitingForParents"
    assert world.stage("ppo").message == "It needs the output of reward."


def test_a_result_without_a_checkpoint_is_a_fault() -> None:
    world = World(a_job().build()).up_to("sft")
    claimed = StageResult(exit_code=0, reason="Done")
    world.becomes("sft", "Succeeded", exit_code=0, result=claimed).reconcile()
    assert world.stage("sft").faults == 1


def test_no_stage_claims_a_result_while_its_sources_are_looked_at_again() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_annotation("rlhf.dev/refresh", "now")).settle()
    assert {world.stage(name).reason for name in ("sft", "reward", "ppo", "dpo")} == {"Preparing"}
    assert world.condition("Ready")[0] == "False"


def test_new_inputs_have_a_fresh_budget() -> None:
    world = World(a_job().build()).up_to("sft")
    world.fails("sft", 75).edit(a_job().with_spec("stages.sft.learningRate", 1e-3)).settle()
    assert world.stage("sft").attempt == 2
    assert world.stage("sft").faults == 0


def expiring(seconds: int) -> JobBuilder:
    return a_job().with_spec("ttlSecondsAfterFinished", seconds)


def test_the_children_of_ended_attempts_expire_and_results_stay() -> None:
    world = World(expiring(60).build()).finish()
    assert world.after(seconds=59).settle() == []
    due = next_pass(world.job, world.observed(), world.status)
    assert due == NOON + timedelta(seconds=60)
    world.after(seconds=1)
    assert {a.reason for a in world.settle() if isinstance(a, DeleteChildren)} == {"Expired"}
    assert not world.attempts
    assert world.status.phase == "Succeeded"
    assert next_pass(world.job, world.observed(), world.status) is None


def test_children_expire_only_after_their_end_was_written_down() -> None:
    world = World(expiring(0).only("sft").build())
    world.settle()
    attempt = world.current("prepare")
    result = a_result(attempt, world.job, {})
    world.becomes("prepare", "Succeeded", exit_code=0, result=result)
    assert not any(isinstance(action, DeleteChildren) for action in world.reconcile())
    assert DeleteChildren("prepare", 1, "Expired") in world.reconcile()


def test_the_children_of_a_failed_attempt_stay_for_as_long_as_nothing_expires() -> None:
    world = World(a_job().build()).up_to("sft").fails("sft", 64)
    assert world.after(days=365).settle() == []
    assert next_pass(world.job, world.observed(), world.status) is None


def test_the_next_pass_is_due_at_the_end_of_a_pause_or_of_the_wait_for_a_missing_job() -> None:
    world = World(a_job().build()).up_to("sft")
    assert next_pass(world.job, world.observed(), world.status) is None
    world.fails("sft", 75)
    assert next_pass(world.job, world.observed(), world.status) == NOON + timedelta(seconds=10)
    world = World(a_job().build()).up_to("sft").vanishes("sft")
    world.settle()
    assert next_pass(world.job, world.observed(), world.status) == NOON + timedelta(seconds=5)


def test_a_job_that_comes_into_sight_again_was_never_gone() -> None:
    world = World(a_job().build()).up_to("sft")
    attempt = world.current("sft")
    world.vanishes("sft").settle()
    world.after(seconds=4).settle()
    world.attempts["sft", 1] = attempt
    world.settle()
    assert world.after(hours=1).settle() == []
    assert (world.stage("sft").attempt, world.stage("sft").missing_time) == (1, None)


def test_storage_that_was_moved_past_admission_stalls_the_job_and_touches_nothing() -> None:
    world = World(a_job().build()).up_to("sft")
    moved = a_job().with_spec("checkpoints", {"existingClaim": "other"})
    assert world.edit(moved).settle() == []
    assert world.condition("Stalled") == ("True", "ImmutableFieldChanged")
    assert "spec.checkpoints is immutable: it was pvc://tiny-checkpoints" in next(
        item.message for item in world.status.conditions if item.type == "Stalled"
    )
    assert world.live("sft")
    assert world.edit(a_job()).settle() == []
    assert world.condition("Reconciling")[0] == "True"


def test_a_report_that_no_status_could_hold_is_cut_or_left_out() -> None:
    """The API server would refuse the whole status, at each pass."""
    metrics = [{"name": "checkpoint/step", "value": "1e30"}]
    told = {"estimatedRemainingSeconds": 1e300, "metrics": metrics}
    report = parse_report(json.dumps({"trainerStatus": told}).encode())
    assert report is not None
    world = World(a_job().build()).up_to("sft")
    world.progress["sft", 1] = report
    world.reconcile()
    assert world.stage("sft").saved is None
    JobStatus.model_validate(world.status.to_dict(), by_alias=True, by_name=False)


def test_saves_stay_for_a_restart_and_go_with_their_inputs() -> None:
    world = World(a_job().build()).up_to("sft")
    world.progress["sft", 1] = Progress(10.0, None, {"checkpoint/step": 40.0})
    world.reconcile()
    world.fails("sft", 137, is_disrupted=True).settle()
    assert world.stage("sft").attempt == 2
    assert world.stage("sft").saved == SavedStep(step=40, time="2026-01-31T12:00:00Z")
    world.edit(a_job().with_spec("stages.sft.learningRate", 1e-3)).settle()
    world.gone().settle()
    assert world.stage("sft").saved is None


def test_what_prepare_found_stays_where_it_finds_nothing_later() -> None:
    world = World(a_job().build()).finish()
    found = world.status.sources
    assert found
    world.edit(a_job().with_spec("stages.sft.data.source", "data/broken.jsonl")).settle()
    result = StageResult(exit_code=64, reason="BadData", sources={"model": "sha256:half"})
    world.fails("prepare", 64, result=result)
    assert world.status.sources == found


def test_a_missing_job_is_gone_in_time_though_the_clock_was_put_back() -> None:
    world = World(a_job().build()).up_to("sft").vanishes("sft")
    world.settle()
    world.after(hours=-1).settle()
    world.after(seconds=4).settle()
    assert world.stage("sft").attempt == 1
    world.after(seconds=1).settle()
    assert world.stage("sft").attempt == 2
