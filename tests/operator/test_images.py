"""A name for the image that a job got by default is no other image, nor is a new default."""

from __future__ import annotations

import pytest
from builders import World, a_job, begun
from rlhf_api.run import PREPARE


@pytest.mark.parametrize("path", ["image", "stages.ppo.image"])
def test_a_job_that_names_the_image_it_got_trains_nothing_again(path: str) -> None:
    world = World(a_job().build()).finish()
    results = {name: stage.finished for name, stage in world.status.stages.items()}
    assert world.edit(a_job().with_spec(path, "trainer:1")).settle() == []
    assert world.status.phase == "Succeeded"
    assert {name: stage.finished for name, stage in world.status.stages.items()} == results


def test_an_attempt_under_way_goes_on_when_its_image_is_named() -> None:
    world = World(a_job().build()).up_to("sft")
    assert world.edit(a_job().with_spec("image", "trainer:1")).settle() == []
    assert world.finish().stage("sft").attempt == 1


def test_what_comes_after_is_trained_with_the_image_that_is_named() -> None:
    world = World(a_job().build()).up_to("sft")
    world.edit(a_job().with_spec("image", "trainer:1")).succeeds("sft")
    assert world.stage("sft").attempt == world.stage("reward").attempt == 1
    assert world.stage("reward").image == "trainer:1"


@pytest.mark.parametrize("named", ["trainer:2", "own:1"])
def test_another_image_trains_everything_again(named: str) -> None:
    world = World(a_job().build()).finish()
    world.default_image = "trainer:2"
    assert begun(world.edit(a_job().with_spec("image", named)).settle()) == [PREPARE]
    world.finish()
    assert {stage.attempt for stage in world.status.stages.values()} == {2}
    assert {stage.finished[0].image for stage in world.status.stages.values()} == {named}


def test_a_new_default_trains_nothing_again_whether_the_old_one_is_named_or_not() -> None:
    world = World(a_job().build()).finish()
    world.default_image = "trainer:2"
    assert world.settle() == []
    assert world.edit(a_job().with_spec("image", "trainer:1")).settle() == []


def test_a_stage_s_own_image_is_told_and_counts_for_it_alone() -> None:
    world = World(a_job().with_spec("stages.ppo.image", "own:1").build()).finish()
    told = {name: stage.image for name, stage in world.status.stages.items()}
    assert told == {"sft": "trainer:1", "reward": "trainer:1", "ppo": "own:1", "dpo": "trainer:1"}
    assert world.edit(
        a_job().with_spec("stages.ppo.image", "own:1").with_spec("image", "trainer:1")
    )
    assert world.settle() == []


def test_a_setting_that_changes_with_the_name_starts_its_stage_alone() -> None:
    world = World(a_job().build()).finish()
    named = a_job().with_spec("image", "trainer:1").with_spec("stages.ppo.kl", {"coef": 0.5})
    assert begun(world.edit(named).settle()) == ["ppo"]
