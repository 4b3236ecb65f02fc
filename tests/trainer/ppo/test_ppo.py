"""The PPO stage end to end on a tiny model: it learns, whatever reward, critic and estimator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from rlhf_api.run import StageResult
from rlhf_trainer.errors import NonFinite
from rlhf_trainer.stages import ppo

Train = Callable[..., tuple[StageResult, list[dict[str, float]]]]

REWARD = """
def colours(prompts, answers, rows):
    return [float(sum(letter in 'aeiou' for letter in a)) / max(len(a), 1) for a in answers]
"""


def prompt_rows() -> list[dict[str, str]]:
    return [{"prompt": f"{'say ' * (i % 5)}a vowel {i}"} for i in range(12)]


@pytest.fixture
def settings(in_pod: Any) -> dict[str, Any]:
    """A small PPO stage with a function as its reward."""
    folder = in_pod.directory / "inputs" / "code"
    folder.mkdir()
    (folder / "vowel_reward.py").write_text(REWARD)
    sys.modules.pop("vowel_reward", None)
    in_pod.paths["code"] = "inputs/code"
    return {
        "data": {"source": in_pod.data("prompts", prompt_rows()), "evalFraction": 0},
        "rollouts": 2,
        "globalBatchSize": 8,
        "minibatchSize": 4,
        "microBatchSize": 4,
        "updateEpochs": 2,
        "learningRate": 1e-3,
        "criticLearningRate": 1e-3,
        "rewards": {
            "vowels": {"function": {"entrypoint": "vowel_reward:colours", "source": "code"}}
        },
        "rollout": {"maxPromptLength": 64, "maxNewTokens": 8},
    }


@pytest.fixture
def train(in_pod: Any, open_session: Any, settings: dict[str, Any]) -> Train:
    """Trains one stage in this process: its result and the metrics of each rollout. A second one
    needs another `digest`, or goes on where the first has ended."""

    def run(
        digest: str = "0123456789ab", **changes: Any
    ) -> tuple[StageResult, list[dict[str, float]]]:
        stage = in_pod.stage_run("ppo", settings | changes, digest=digest)
        result = ppo.train(open_session(stage))
        return result, [line["metrics"] for line in in_pod.metrics(stage)]

    return run


def test_first_update_starts_from_the_policy_that_sampled(train: Train) -> None:
    result, metrics = train(rollouts=1, updateEpochs=1, minibatchSize=8)
    assert result.reason == "Done"
    assert metrics[0]["ppo/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics[0]["ppo/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[0]["ppo/clip_fraction"] == 0
    for figure in ("time", "memory"):
        assert all(metrics[0][f"{figure}/{part}"] > 0 for part in ("generate", "score", "update"))
    assert not any(name.startswith(("time/", "memory/")) for name in metrics[-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"critic": "shared"},
        {"lora": {"rank": 4, "modulesToSave": ["embed_tokens", "lm_head"]}, "critic": "shared"},
        {"lora": {"rank": 4}, "entropyCoef": 0.01, "dualClip": 3.0, "clipHigh": 0.28},
        {
            "advantage": "grpo",
            "rollout": {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 4},
            "groupStd": False,
            "lossAggregation": "constant",
        },
        {
            "advantage": "rloo",
            "rollout": {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 2},
            "ratio": "sequence",
            "lossAggregation": "sequence",
            "clip": 0.0003,
        },
        {
            "advantage": "reinforce++-baseline",
            "rollout": {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 2},
        },
        {"kl": {"adaptive": {"target": 0.1}}, "ema": {"decay": 0.9}, "criticWarmupRollouts": 1},
        {"precision": "bf16"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items())[:40],
)
def test_every_variant_trains_to_a_finite_end(train: Train, changes: dict[str, Any]) -> None:
    result, metrics = train(**changes)
    assert result.exit_code == 0
    assert result.checkpoint is not None
    assert all(isinstance(value, float | int) for value in metrics[-1].values())


def test_the_shares_of_clipped_rewards_and_of_prompts_that_teach_nothing_are_told(
    train: Train, in_pod: Any
) -> None:
    code = in_pod.directory / "inputs" / "code" / "points_reward.py"
    code.write_text("def points(prompts, answers, rows):\n    return [-6.0, 100.0] + [5.0] * 6\n")
    function = {"entrypoint": "points_reward:points", "source": "code"}
    rollout = {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 4}
    rewards = {"points": {"function": function}}
    _, metrics = train(rollouts=1, rewards=rewards, rollout=rollout, advantage="grpo")
    assert metrics[0]["ppo/reward_clipped_fraction"] == 2 / 8
    assert metrics[0]["ppo/equal_scores_fraction"] == 1 / 2


SOME_PROMPTS_TEACH = """
calls = []

def odd(prompts, answers, rows):
    number = [int(prompt.split()[-1]) for prompt in prompts]
    calls.append(number)
    if len(calls) == 2 and rows[0]["prompt"].startswith("broken"):
        return [float("nan")] * len(rows)
    return [1.0 if n % 2 == 0 else float(i % 2) for i, n in enumerate(number)]
"""
"""Of a prompt with an even number all responses score the same."""


@pytest.fixture
def some_teach(in_pod: Any) -> Callable[[str], dict[str, Any]]:
    """Settings of dynamic sampling among twelve prompts, of which half tell something."""
    folder = in_pod.directory / "inputs" / "code"
    (folder / "odd_reward.py").write_text(SOME_PROMPTS_TEACH)
    sys.modules.pop("odd_reward", None)

    def of(word: str = "say") -> dict[str, Any]:
        prompts = in_pod.data("numbered", [{"prompt": f"{word} {i}"} for i in range(12)])
        return {
            "data": {"source": prompts, "evalFraction": 0},
            "rollouts": 1,
            "advantage": "grpo",
            "rollout": {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 2},
            "dynamicSampling": {},
            "rewards": {"odd": {"function": {"entrypoint": "odd_reward:odd", "source": "code"}}},
        }

    return of


def test_dynamic_sampling_learns_from_prompts_that_tell_something_and_says_what_it_took(
    train: Train, some_teach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    update = ppo.update

    def watched(
        session: Any, config: Any, team: Any, experience: Any, *rest: Any, **kl: Any
    ) -> Any:
        seen.append(experience)
        return update(session, config, team, experience, *rest, **kl)

    monkeypatch.setattr(ppo, "update", watched)
    _, metrics = train(**some_teach())
    calls = sys.modules["odd_reward"].calls
    asked = [number for call in calls for number in call[::2]]
    odd = [number for number in asked if number % 2]
    assert len(calls) > 1
    assert len(set(asked)) == len(asked) >= 8  # no prompt twice, and half of them tell nothing
    assert seen[0].rollout.ids == [f"numbered.jsonl:{n + 1}" for n in odd[:4] for _ in range(2)]
    assert (seen[0].advantages[seen[0].mask].abs() > 0.7).all()
    even = sum(number % 2 == 0 for number in calls[0][::2])
    scored = [1.0] * even * 2 + [0.0, 1.0] * (4 - even)
    assert metrics[0]["ppo/reward"] == sum(scored) / 8  # as without dynamic sampling
    assert metrics[0]["ppo/equal_scores_fraction"] == even / 4
    assert metrics[0]["ppo/sampling_rounds"] == len(calls)
    assert metrics[0]["ppo/dropped_groups_fraction"] == pytest.approx(1 - 4 / len(asked))
    assert metrics[0]["ppo/filled_groups_fraction"] == 0


def test_dynamic_sampling_goes_on_with_what_it_has_after_its_last_round(
    train: Train, some_teach: Any, in_pod: Any
) -> None:
    same = [{"prompt": f"even {2 * i}"} for i in range(6)]
    data = {"source": in_pod.data("even", same), "evalFraction": 0}
    _, metrics = train(**some_teach() | {"data": data, "dynamicSampling": {"maxRounds": 3}})
    assert [len(call) for call in sys.modules["odd_reward"].calls] == [8, 8, 8]
    assert metrics[0]["ppo/sampling_rounds"] == 3
    assert metrics[0]["ppo/dropped_groups_fraction"] == pytest.approx(2 / 3)
    assert metrics[0]["ppo/filled_groups_fraction"] == 1
    assert metrics[0]["ppo/actor_grad_norm"] < 1e-6  # nothing to learn, and no KL yet


def test_a_reward_that_is_no_number_in_a_later_round_names_the_rows_of_that_round(
    train: Train, some_teach: Any
) -> None:
    with pytest.raises(NonFinite, match="is nan at step 1") as found:
        train(**some_teach("broken"))
    second = sys.modules["odd_reward"].calls[1][::2]
    assert found.value.row_ids == tuple(f"numbered.jsonl:{number + 1}" for number in second)


ECHO = """
heard = []

def echo(prompts, answers, rows):
    heard.extend(answers)
    return [float(len(answer)) for answer in answers]
"""


def test_rewards_read_a_response_up_to_its_stop_string_which_ends_it(
    train: Train, in_pod: Any
) -> None:
    (in_pod.directory / "inputs" / "code" / "echo_reward.py").write_text(ECHO)
    sys.modules.pop("echo_reward", None)
    rewards = {"echo": {"function": {"entrypoint": "echo_reward:echo", "source": "code"}}}
    rollout = {"maxPromptLength": 64, "maxNewTokens": 24, "stop": ["e", "o", "t"]}
    _, metrics = train(rollouts=1, rewards=rewards, rollout=rollout)
    heard = sys.modules["echo_reward"].heard
    stopped = [answer for answer in heard if set(answer) & set("eot")]
    assert 0 < len(stopped) < len(heard) == 8
    # The last token has the text, if with letters beside it, as "the" has.
    assert all(not set(answer[:-8]) & set("eot") for answer in stopped)
    assert metrics[0]["ppo/eos_fraction"] >= len(stopped) / 8  # others end as ever


def test_a_reward_that_is_no_number_stops_before_anything_is_learnt(
    train: Train, in_pod: Any
) -> None:
    code = in_pod.directory / "inputs" / "code" / "nan_reward.py"
    code.write_text("def score(prompts, answers, rows):\n    return [0.5] * 7 + [float('nan')]\n")
    rewards = {"broken": {"function": {"entrypoint": "nan_reward:score", "source": "code"}}}
    said = r"the reward of nan_reward:score for the answer .* is nan at step 1; rows of the batch: "
    with pytest.raises(NonFinite, match=said + r"prompts\.jsonl:\d+, "):
        train(rewards=rewards)


def test_grpo_weighs_its_kl_by_the_coefficient_that_adapts(train: Train) -> None:
    rollout = {"maxPromptLength": 64, "maxNewTokens": 8, "samplesPerPrompt": 4}
    group = {"advantage": "grpo", "rollout": rollout, "rollouts": 3}
    _, fixed = train(**group, kl={"coef": 5.0})
    adaptive = {"coef": 5.0, "adaptive": {"target": 1e6, "horizon": 1}}
    _, adapted = train("ba9876543210", **group, kl=adaptive)
    assert [m["ppo/kl_coef"] for m in adapted[:3]] == pytest.approx([5.0, 4.0, 3.2])
    kl = [[m["ppo/kl"] for m in run[:3]] for run in (fixed, adapted)]
    assert kl[0][:2] == kl[1][:2]  # the first update has the same coefficient
    assert kl[0][2] != kl[1][2]


def test_while_a_critic_warms_up_neither_text_moves_the_policy_nor_its_kl_the_coefficient(
    train: Train, in_pod: Any
) -> None:
    """A policy that does not train yet is no nearer to the reference than it ought to be. Nor do
    its weights decay."""
    text = {"source": in_pod.data("texts", [{"text": "aaa aaa"}] * 4), "evalFraction": 0}
    settings = {"critic": "shared", "rollouts": 2, "criticWarmupRollouts": 1}
    settings |= {"weightDecay": 1.0, "learningRate": 0.1}
    beta = {"coef": 0.02, "adaptive": {"target": 6.0, "horizon": 8}}
    _, metrics = train(**settings, pretraining={"data": text}, kl=beta)
    assert [m["ppo/kl_coef"] for m in metrics[:2]] == [0.02, 0.02]
    assert "ppo/pretraining_loss" not in metrics[0]
    assert metrics[1]["ppo/kl"] == pytest.approx(0, abs=1e-5)
    assert metrics[1]["ppo/pretraining_loss"] > 0
