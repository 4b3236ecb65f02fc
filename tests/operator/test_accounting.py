"""Device time by what became of it, restarts by cause, and the values that kubectl shows."""

from __future__ import annotations

from typing import Any

from builders import World, a_job
from rlhf_api.status import GPUSeconds
from rlhf_operator.observed import Progress


def gpu_job(**spec: Any) -> World:
    builder = a_job().with_spec("resources", {"nodes": 1, "gpusPerNode": 8})
    for path, value in spec.items():
        builder.with_spec(path, value)
    world = World(builder.build())
    world.settle()
    return world.succeeds("prepare")


def waits_10_s(world: World) -> World:
    """Sits on a node for 10 s before it runs."""
    world.becomes("sft", "Pending", node="node-a").settle()
    world.after(seconds=10).runs("sft").settle()
    return world


def spent(world: World) -> GPUSeconds | None:
    return world.stage("sft").gpu_seconds


def test_an_attempt_that_succeeds_is_useful_but_for_its_wait() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100).succeeds("sft")
    assert spent(world) == GPUSeconds(useful=800, waiting=80)


def test_an_attempt_that_ends_before_all_of_it_runs_has_waited_throughout() -> None:
    world = gpu_job().becomes("sft", "Pending", node="node-a")
    world.settle()
    world.after(seconds=30)
    builder = a_job().with_spec("resources", {"nodes": 1, "gpusPerNode": 8})
    world.edit(builder.with_spec("suspend", True)).settle()
    assert spent(world) == GPUSeconds(waiting=240)


def test_what_came_after_the_newest_save_is_repeated() -> None:
    world = waits_10_s(gpu_job()).after(seconds=70)
    world.progress["sft", 1] = Progress(50.0, None, {"checkpoint/step": 40.0})
    world.reconcile()
    world.after(seconds=30).fails("sft", 75)
    assert spent(world) == GPUSeconds(useful=560, repeated=240, waiting=80)


def test_without_a_known_save_all_of_a_failed_attempt_is_repeated() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100).fails("sft", 1)
    assert spent(world) == GPUSeconds(repeated=800, waiting=80)


def test_an_attempt_that_saved_when_it_was_told_to_end_is_useful() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100).fails("sft", 143, is_disrupted=True)
    assert spent(world) == GPUSeconds(useful=800, waiting=80)


def test_suspending_keeps_the_work_and_changing_its_meaning_loses_it() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100)
    resources = {"nodes": 1, "gpusPerNode": 8}
    builder = a_job().with_spec("resources", resources).with_spec("suspend", True)
    world.edit(builder).settle()
    assert spent(world) == GPUSeconds(useful=800, waiting=80)
    world = waits_10_s(gpu_job()).after(seconds=100)
    builder = a_job().with_spec("resources", resources).with_spec("stages.sft.learningRate", 0.001)
    world.edit(builder).settle()
    assert spent(world) == GPUSeconds(repeated=800, waiting=80)


def test_the_wait_between_two_admissions_of_a_queue_costs_nothing() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100)
    attempt = world.current("sft")
    world.attempts["sft", 1] = attempt._replace(pods=(), is_suspended=True)
    world.reconcile()
    world.after(hours=5).attempts["sft", 1] = attempt
    world.reconcile()
    world.after(seconds=50).succeeds("sft")
    assert spent(world) == GPUSeconds(useful=1200, waiting=80)


def test_time_ends_with_the_pods_and_not_with_the_pass_that_sees_it() -> None:
    world = waits_10_s(gpu_job())
    ended = world.now.timestamp() + 100
    world.after(hours=1).becomes("sft", "Running", finished_at=ended).succeeds("sft")
    assert spent(world) == GPUSeconds(useful=800, waiting=80)


def test_the_clock_of_a_node_that_is_behind_takes_no_time_off() -> None:
    """By it the pod ended before it began."""
    world = waits_10_s(gpu_job())
    ended = world.now.timestamp() + 100 - 3600
    world.after(seconds=100).becomes("sft", "Running", finished_at=ended).succeeds("sft")
    assert spent(world) == GPUSeconds(useful=800, waiting=80)


def test_sums_go_on_over_attempts_and_no_device_has_none() -> None:
    world = waits_10_s(gpu_job()).after(seconds=100).fails("sft", 75)
    world.after(seconds=10).settle()
    waits_10_s(world).after(seconds=100).succeeds("sft")
    assert spent(world) == GPUSeconds(useful=800, repeated=800, waiting=160)
    assert world.stage("prepare").gpu_seconds is None


def test_restarts_are_counted_by_what_ended_the_attempt_before() -> None:
    world = gpu_job()
    world.runs("sft").fails("sft", 137, is_disrupted=True).settle()
    world.runs("sft").fails("sft", 75).after(seconds=10).settle()
    world.edit(a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8})).settle()
    world.gone().settle()
    assert world.stage("sft").restarts == {"Disruption": 1, "Fault": 1, "Stopped": 1}
    assert world.status.restarts == 3


def test_a_stage_that_runs_anew_after_success_is_no_restart() -> None:
    world = World(a_job().build()).finish()
    world.edit(a_job().with_spec("stages.ppo.kl", {"coef": 0.5})).finish()
    assert (world.stage("ppo").attempt, world.status.restarts) == (2, 0)


def test_columns_of_a_job_that_trains() -> None:
    world = World(a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8}).build())
    world.up_to("ppo")
    world.succeeds("dpo")
    metrics = {"ppo/reward": 1.5, "ppo/kl": 3.250012345}
    world.progress["ppo", 1] = Progress(41.2, 7800.0, metrics)
    world.after(seconds=10).reconcile()
    status = world.status
    assert (status.stage, status.progress, status.eta) == ("ppo 3/4", "41%", "2h10m")
    assert (status.reward, status.kl, status.gpus) == (1.5, 3.25, 16)
    assert status.checkpoint == world.stage("dpo").checkpoint.uri  # type: ignore[union-attr]


def test_columns_from_the_first_pass_to_the_last() -> None:
    world = World(a_job().build())
    world.reconcile()
    assert (world.status.stage, world.status.progress) == ("prepare 0/4", None)
    world.up_to("reward")
    world.runs("dpo").settle()
    assert world.status.stage == "reward+dpo 2/4"
    world.finish()
    assert (world.status.stage, world.status.progress) == ("4/4", "100%")
    assert (world.status.eta, world.status.gpus) == (None, 0)


def test_the_column_of_a_failed_job_names_the_stage_that_failed() -> None:
    assert World(a_job().build()).up_to("sft").fails("sft", 64).status.stage == "sft 1/4"
