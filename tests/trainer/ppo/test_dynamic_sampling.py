"""Which prompts a rollout draws where some tell nothing, and what it is made of in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlhf_api.stages import PPOStage
from rlhf_trainer.data.examples import Extras
from rlhf_trainer.ppo.answered import Question, Scores
from rlhf_trainer.ppo.dynamic_sampling import (
    Sampled,
    groups_that_teach,
    groups_to_ask,
    merged,
    sampling_metrics,
    taken,
)
from rlhf_trainer.ppo.experience import Rollout, equal_groups

YES, NO = True, False


def settings(**changes: Any) -> PPOStage:
    """GRPO of four prompts a rollout with two responses each."""
    shape = {"data": {"source": "unused"}, "globalBatchSize": 8, "advantage": "grpo"}
    rollout = {"samplesPerPrompt": 2, "maxNewTokens": 8}
    return PPOStage.model_validate(shape | {"rollout": rollout} | changes)


def sampled(names: str, scores: list[float], said: list[list[int]] | None = None) -> Sampled:
    """Two responses to each prompt."""
    ids = [name for name in names for _ in range(2)]
    responses = said or [[40 + i] for i in range(len(ids))]
    questions = [Question(i, i, (), Extras(), {}, [1]) for i in ids]
    logprobs = [[-float(len(r))] * len(r) for r in responses]
    rollout = Rollout(ids, [[1]] * len(ids), responses, [i % 2 == 0 for i in range(len(ids))])
    raw = torch.tensor(scores, dtype=torch.float64)
    return Sampled(questions, rollout._replace(logprobs=logprobs), Scores(raw, raw / 10))


@pytest.mark.parametrize(
    ("teaches", "groups"),
    [
        ([], 4),
        ([[YES, YES, YES, YES]], 0),
        ([[YES, YES, YES, NO]], 2),  # one is missing, and three of four tell something: 4/3
        ([[YES, NO, NO, NO]], 4),  # twelve would be needed: as many as a batch has, and no more
        ([[NO, NO, NO, NO]], 4),
        ([[YES, YES, NO, NO], [YES, YES, NO, NO]], 0),
        ([[YES, YES, NO, NO], [NO, NO, NO, NO]], 0),  # the third of two rounds
    ],
)
def test_a_round_asks_for_as_many_prompts_as_will_do(
    teaches: list[list[bool]], groups: int
) -> None:
    assert groups_to_ask(settings(dynamicSampling={"maxRounds": 2}), teaches) == groups
    assert groups_to_ask(settings(), teaches) == (0 if teaches else 4)


def test_a_rollout_is_the_first_prompts_that_tell_something_then_the_first_of_the_others() -> None:
    teaches = [[NO, YES, NO, YES], [YES, NO, YES]]
    assert taken(teaches, 4) == [(0, 1), (0, 3), (1, 0), (1, 2)]
    assert taken(teaches, 3) == [(0, 1), (0, 3), (1, 0)]
    assert taken(teaches, 6) == [(0, 1), (0, 3), (1, 0), (1, 2), (0, 0), (0, 2)]
    assert sampling_metrics(teaches, taken(teaches, 6)) == {
        "ppo/sampling_rounds": 2,
        "ppo/dropped_groups_fraction": pytest.approx(1 / 7),
        "ppo/filled_groups_fraction": 2 / 6,
    }


def test_rounds_are_merged_by_whole_prompts_with_all_that_belongs_to_their_responses() -> None:
    said = [[50], [51, 52], [53], [54, 55, 56]]
    rounds = [sampled("ab", [1, 2, 3, 4]), sampled("cd", [5, 6, 7, 8], said)]
    found = merged(rounds, [(1, 1), (0, 0)], 2)
    assert [question.id for question in found.questions] == ["d", "d", "a", "a"]
    assert found.rollout == Rollout(
        ids=["d", "d", "a", "a"],
        prompts=[[1]] * 4,
        responses=[[53], [54, 55, 56], [40], [41]],
        finished=[True, False, True, False],
        logprobs=[[-1.0], [-3.0] * 3, [-1.0], [-1.0]],
    )
    assert found.scores.raw.tolist() == [7, 8, 1, 2]
    assert found.scores.normalised.tolist() == [0.7, 0.8, 0.1, 0.2]
    silent = [each._replace(rollout=each.rollout._replace(logprobs=None)) for each in rounds]
    assert merged(silent, [(0, 1)], 2).rollout.logprobs is None


def test_what_advantages_see_tells_whether_responses_score_the_same() -> None:
    points = [5.0, 5.0, 60.0, 70.0, 1.0, 2.0]
    assert groups_that_teach(settings(), sampled("abc", points)) == [False, False, True]  # clipped
    assert groups_that_teach(settings(rewardClip=10), sampled("abc", points)) == [NO, YES, YES]
    late = settings(missingEosPenalty=0.5)
    assert groups_that_teach(late, sampled("abc", points)) == [True, True, True]


def test_the_same_response_twice_tells_nothing_whatever_a_model_makes_of_its_last_digits() -> None:
    said = [[40, 41], [40, 41], [40, 41], [40, 42]]
    two = sampled("ab", [0.1, 0.1000001, 0.1, 0.1000001], said)
    assert equal_groups(settings(), two.scores, two.rollout).tolist() == [True, False]
