"""A PPO run that is killed at any moment and started again ends as if nothing had happened."""

from __future__ import annotations

import shutil
import time
from typing import Any

import pytest
from resuming import digest
from rlhf_api.run import StageRun
from rlhf_trainer.errors import Terminated
from rlhf_trainer.stages import ppo

ROLLOUTS = 5
SETTINGS: dict[str, Any] = {
    "rollouts": ROLLOUTS,
    "globalBatchSize": 8,
    "minibatchSize": 4,
    "microBatchSize": 2,
    "updateEpochs": 2,
    "learningRate": 1e-3,
    "criticLearningRate": 1e-3,
    "checkpointing": {"everySteps": 2},
    "rollout": {"maxPromptLength": 64, "maxNewTokens": 8},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "full, own critic, average, adaptive β": {
        "ema": {"decay": 0.8},
        "kl": {"adaptive": {"target": 0.2, "horizon": 20}},
        "maxKl": 1000.0,
    },
    "full, shared critic": {"critic": "shared"},
    "LoRA": {"lora": {"rank": 4, "modulesToSave": ["lm_head"]}},
}


VOWELS = """
import time
from pathlib import Path

def score(prompts, answers, rows):
    while Path("held").exists() and has_rollouts(*Path("held").read_text().split()):
        time.sleep(0.01)
    return [sum(c in 'aeiou' for c in a) / max(len(a), 1) for a in answers]

def has_rollouts(count, file):
    return Path(file).exists() and Path(file).read_text().count("\\n") >= int(count)
"""
"""A reward that waits, where somebody holds it, once there are metrics of so many rollouts."""


def stage(pod: Any, changes: dict[str, Any], attempt: int = 1) -> StageRun:
    folder = pod.directory / "inputs" / "code"
    folder.mkdir(exist_ok=True)
    (folder / "vowels_of_resume.py").write_text(VOWELS)
    pod.paths["code"] = "inputs/code"
    reward = {"entrypoint": "vowels_of_resume:score", "source": "code"}
    prompts = [{"prompt": f"{'say ' * (i % 5)}a vowel {i}"} for i in range(12)]
    settings = {
        "data": {"source": pod.data("prompts", prompts), "evalFraction": 0},
        "rewards": {"vowels": {"function": reward}},
    }
    run: StageRun = pod.stage_run("ppo", SETTINGS | settings | changes, attempt=attempt)
    return run


def digest_and_forget(pod: Any, session: Any) -> str:
    """Trains a whole run; nothing of it is left for another."""
    ppo.train(session)
    session.telemetry.close()  # its threads write no more into what goes
    found = digest(pod, session.run)
    shutil.rmtree(pod.directory / session.run.lineage)
    return found


def kill_after(pod: Any, run: StageRun, rollouts: int, seconds: float) -> None:
    """SIGKILL so many seconds after the metrics of a rollout were written, in the next one."""
    metrics = pod.directory / run.output / "metrics.jsonl"
    (pod.directory / "held").write_text(f"{rollouts} {metrics}")
    process = pod.start(run)
    while not metrics.exists() or metrics.read_text().count("\n") < rollouts:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    time.sleep(seconds)
    assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.communicate()
    (pod.directory / "held").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_run_ends_with_the_weights_of_the_uninterrupted_one(
    variant: str, in_pod: Any, open_session: Any
) -> None:
    changes = VARIANTS[variant]
    whole = stage(in_pod, changes)
    expected = digest_and_forget(in_pod, open_session(whole))

    killed = stage(in_pod, changes)
    kill_after(in_pod, killed, rollouts=3, seconds=0.01)
    resumed = stage(in_pod, changes, attempt=2)
    ppo.train(open_session(resumed))
    assert digest(in_pod, resumed) == expected
    steps = [line["step"] for line in in_pod.metrics(resumed)]
    assert steps[0] == 3  # it went on from the checkpoint at rollout 2


DYNAMIC: dict[str, Any] = {
    "advantage": "grpo",
    "rollout": {"maxPromptLength": 64, "maxNewTokens": 4, "samplesPerPrompt": 2},
    "dynamicSampling": {"maxRounds": 3},
}


@pytest.mark.parametrize("changes", [{}, DYNAMIC], ids=["PPO", "dynamic sampling"])
def test_sigterm_saves_between_two_rollouts_and_the_next_attempt_goes_on(
    changes: dict[str, Any], in_pod: Any, open_session: Any
) -> None:
    whole = stage(in_pod, changes)
    expected = digest_and_forget(in_pod, open_session(whole))

    session = open_session(stage(in_pod, changes))
    session.guard.signalled = True
    with pytest.raises(Terminated, match="saved at rollout 1 of 5"):
        ppo.train(session)
    resumed = stage(in_pod, changes, attempt=2)
    ppo.train(open_session(resumed))
    assert digest(in_pod, resumed) == expected
    rounds = [line["metrics"].get("ppo/sampling_rounds", 1) for line in in_pod.metrics(resumed)]
    assert (max(rounds) > 1) == bool(changes)


def test_resume_without_the_average_would_be_seen(in_pod: Any, open_session: Any) -> None:
    """The comparison above can fail: another average gives other weights."""
    digests = set()
    for decay in (0.8, 0.81):
        run = stage(in_pod, {"ema": {"decay": decay}, "rollouts": 1})
        digests.add(digest_and_forget(in_pod, open_session(run)))
    assert len(digests) == 2
