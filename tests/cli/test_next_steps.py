"""What `rlhfctl describe` tells a person to do."""

from __future__ import annotations

import pytest
from builders import World, a_job
from rlhf_api.status import Condition, JobStatus
from rlhf_cli.next_steps import next_steps
from rlhf_cli.targets.directory import Directory
from rlhf_operator.kueue import DEACTIVATED


def test_a_gate_that_is_not_met_is_not_mended_by_going_on() -> None:
    gate = {"metric": "eval/accuracy", "min": 0.9}
    job = a_job().with_spec("stages.reward.gate", gate).without("dpo").build()
    world = World(job).up_to("reward")
    world.succeeds("reward", **{"eval/accuracy": 0.5})
    world.settle()
    steps = list(next_steps(Directory("run"), world.job, is_alive=False))
    assert [step.partition(":")[0] for step in steps] == ["let ppo start"]
    assert "another gate" in steps[0]


@pytest.mark.parametrize(
    ("message", "step"),
    [
        ("quota of research is exhausted", "make room, ask for less, or wait"),
        (
            f"The Job is suspended by its queue: too many tries. {DEACTIVATED} w to true.",
            "have Kueue take it anew, once that is mended:  "
            "rlhfctl suspend --wait --dir run && rlhfctl resume --dir run",
        ),
    ],
)
def test_a_job_that_its_queue_holds_back_is_told_what_helps(message: str, step: str) -> None:
    waits = Condition(
        type="Scheduled",
        status="False",
        reason="QueueAdmission",
        message=message,
        last_transition_time="2026-01-05T10:00:00Z",
    )
    job = a_job().build().model_copy(update={"status": JobStatus(conditions=[waits])})
    (told,) = next_steps(Directory("run"), job, is_alive=True)
    assert told.startswith(step)
