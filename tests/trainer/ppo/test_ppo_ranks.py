"""PPO on two processes over gloo: the same curve as on one, whatever ZeRO partitions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from trainer_pod import Pod, write_model

COMPARED = (
    "ppo/reward",
    "ppo/kl",
    "ppo/entropy",
    "ppo/response_length",
    "ppo/policy_loss",
    "ppo/value_loss",
    "ppo/actor_grad_norm",
    "ppo/dropped_groups_fraction",
)


VARIANTS: dict[str, dict[str, Any]] = {
    "fresh": {"critic": "fresh"},
    "shared": {
        "critic": "shared",
        "lossAggregation": "sequence",
        "ratio": "sequence",
        "clip": 0.001,
        "entropyCoef": 0.1,
    },
    "groups": {
        "advantage": "grpo",
        "rollout": {
            "maxPromptLength": 64,
            "maxNewTokens": 24,
            "temperature": 1.5,
            "samplesPerPrompt": 3,
        },
        "dynamicSampling": {"maxRounds": 3},
        "rewards": {"odd": {"function": {"entrypoint": "short_reward:odd", "source": "code"}}},
    },
}


def settings_on(pod: Pod, zero: int) -> dict[str, Any]:
    """Three rollouts for short answers, whatever ZeRO partitions."""
    folder = pod.directory / "inputs" / "code"
    folder.mkdir(parents=True)
    (folder / "short_reward.py").write_text(
        "def score(prompts, answers, rows):\n    return [-len(a) / 8 for a in answers]\n"
        "def odd(prompts, answers, rows):\n"
        "    return [-len(a) / 8 * (int(p[-1]) % 2) for p, a in zip(prompts, answers)]\n"
    )
    pod.paths["code"] = "inputs/code"
    prompts = [{"prompt": f"{'long ' * (i % 6)}question {i}"} for i in range(12)]
    return {
        "data": {"source": pod.data("prompts", prompts), "evalFraction": 0},
        "rollouts": 3,
        "globalBatchSize": 6,
        "minibatchSize": 3,
        "microBatchSize": 2,
        "updateEpochs": 2,
        "learningRate": 1e-3,
        "criticLearningRate": 1e-3,
        "rewards": {"short": {"function": {"entrypoint": "short_reward:score", "source": "code"}}},
        "rollout": {"maxPromptLength": 64, "maxNewTokens": 24, "temperature": 1.5},
        "zero": {"stage": zero},
    }


def curve(
    directory: Path, model: Path, ranks: int, zero: int, changes: Mapping[str, Any]
) -> list[list[float]]:
    """Metrics of each rollout of a run on so many processes."""
    pod = Pod(directory, model)
    run = pod.stage_run("ppo", {**settings_on(pod, zero), **changes})
    codes, log = pod.forked(run, ranks)
    assert codes == [0] * ranks, log
    lines = [line["metrics"] for line in pod.metrics(run)[:3]]
    return [[line[name] for name in COMPARED if name in line] for line in lines]


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends its answer at about every twelfth token."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = write_model(tmp_path_factory.mktemp("ending"))
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.get_input_embeddings().weight += 1  # a direction that all hidden states share,
        model.get_output_embeddings().weight[2] = 0.1  # and that the EOS points in
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory, ending: Path) -> Any:
    """The curve of one process without ZeRO, for each variant."""
    found: dict[str, list[list[float]]] = {}

    def get(variant: str) -> list[list[float]]:
        if variant not in found:
            directory = tmp_path_factory.mktemp("one")
            found[variant] = curve(directory, ending, 1, 0, VARIANTS[variant])
        return found[variant]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "variant"), [(0, "fresh"), (1, "shared"), (2, "fresh"), (3, "fresh"), (0, "groups")]
)
def test_two_ranks_give_the_curve_of_one(
    zero: int, variant: str, tmp_path: Path, ending: Path, of_one: Any
) -> None:
    two = curve(tmp_path, ending, 2, zero, VARIANTS[variant])
    one = of_one(variant)
    assert variant != "groups" or max(row[-1] for row in one) > 0, "no prompt was drawn again"
    lengths = {round(row[COMPARED.index("ppo/response_length")] * 6) for row in one}
    assert min(lengths) < 6 * 24, "no response ended early: ranks would never differ in length"
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "writers"), [(0, 1), (3, 2)], ids=["whole", "shares"])
def test_weights_beside_the_engine_are_in_a_checkpoint_once_and_come_back(
    zero: int, writers: int, pod: Pod
) -> None:
    """Each rank's own share under ZeRO-3, else rank 0's: never all of them on every rank."""
    import torch

    settings = {
        **settings_on(pod, zero),
        "ema": {"decay": 0.5},
        "maxKl": 1000.0,
        "checkpointing": {"everySteps": 1},
    }
    first = pod.stage_run("ppo", settings | {"rollouts": 2})
    codes, log = pod.forked(first, 2)
    assert codes == [0, 0], log
    (step,) = (pod.directory / first.output / "steps").iterdir()
    names = [f"weights-{rank:05d}.pt" for rank in range(writers)]
    assert sorted(path.name for path in step.glob("weights-*")) == names
    assert set(torch.load(step / "state.pt")) == {"beta", "metrics"}
    mine = [torch.load(step / name) for name in names]
    assert all(weights.keys() == {"average", "good"} for weights in mine)
    codes, log = pod.forked(pod.stage_run("ppo", settings | {"rollouts": 3}, attempt=2), 2)
    assert codes == [0, 0], log
    assert "going on from step 1" in log
