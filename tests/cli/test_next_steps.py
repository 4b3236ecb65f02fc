"""What `rlhfctl describe` tells a person to do."""

from __future__ import annotations

from builders import World, a_job
from rlhf_cli.next_steps import next_steps
from rlhf_cli.targets.directory import Directory


def test_a_gate_that_is_not_met_is_not_mended_by_going_on() -> None:
    gate = {"metric": "eval/accuracy", "min": 0.9}
    job = a_job().with_spec("stages.reward.gate", gate).without("dpo").build()
    world = World(job).up_to("reward")
    world.succeeds("reward", **{"eval/accuracy": 0.5})
    world.settle()
    steps = list(next_steps(Directory("run"), world.job, is_alive=False))
    assert [step.partition(":")[0] for step in steps] == ["let ppo start"]
    assert "another gate" in steps[0]
