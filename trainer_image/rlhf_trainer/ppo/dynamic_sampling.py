"""Dynamic sampling: a rollout of prompts from which a group's advantages can learn something.

Where all responses to a prompt score the same, each has an advantage of 0. Further prompts are
drawn in place of such, round after round. Source: Yu et al. 2025 (DAPO), sec. 3.2.

Shapes: B responses of a round, G its groups (prompts), K responses to each: B = G·K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from rlhf_api.stages.ppo import PPOStage

from rlhf_trainer.ppo.answered import Question, Scores
from rlhf_trainer.ppo.experience import Rollout, equal_groups

T = TypeVar("T")
Place = tuple[int, int]
"""A group, as its round and its number therein."""


class Sampled(NamedTuple):
    """Questions with their responses and scores, (B,) each; samples of a prompt are neighbours."""

    questions: Sequence[Question]
    rollout: Rollout
    scores: Scores


def groups_to_ask(config: PPOStage, teaches: Sequence[Sequence[bool]]) -> int:
    """Prompts of the next round, by what those before have brought: `teaches[r][g]` is whether
    group g of round r tells something. As many as will do if they are as those before were, and 0
    where no round is to follow.
    """
    wanted = config.global_batch_size // config.rollout.samples_per_prompt
    rounds = 1 if config.dynamic_sampling is None else config.dynamic_sampling.max_rounds
    asked, found = sum(map(len, teaches)), sum(map(sum, teaches))
    if len(teaches) >= rounds or (teaches and found >= wanted):
        return 0
    return min(wanted, math.ceil((wanted - found) * asked / found)) if found else wanted


def taken(teaches: Sequence[Sequence[bool]], wanted: int) -> list[Place]:
    """The rollout's groups: the first that tell something; where they are too few, it is filled up
    with the first of the others, so that the sizes of its minibatches stay."""
    places = [(r, g) for r, groups in enumerate(teaches) for g in range(len(groups))]
    return sorted(places, key=lambda place: not teaches[place[0]][place[1]])[:wanted]


def merged(rounds: Sequence[Sampled], places: Sequence[Place], samples: int) -> Sampled:
    """These groups, whole, of all rounds."""
    rows = [(r, i) for r, g in places for i in range(g * samples, (g + 1) * samples)]

    def of_rows(columns: Iterable[Sequence[T]]) -> list[T]:
        parts = list(columns)
        return [parts[r][i] for r, i in rows]

    rollouts = [each.rollout for each in rounds]
    logprobs = [rollout.logprobs for rollout in rollouts if rollout.logprobs is not None]
    return Sampled(
        of_rows(each.questions for each in rounds),
        Rollout(
            ids=of_rows(rollout.ids for rollout in rollouts),
            prompts=of_rows(rollout.prompts for rollout in rollouts),
            responses=of_rows(rollout.responses for rollout in rollouts),
            finished=of_rows(rollout.finished for rollout in rollouts),
            logprobs=of_rows(logprobs) if logprobs else None,
        ),
        Scores(
            torch.stack(of_rows(each.scores.raw.unbind() for each in rounds)),
            torch.stack(of_rows(each.scores.normalised.unbind() for each in rounds)),
        ),
    )


def groups_that_teach(config: PPOStage, sampled: Sampled) -> list[bool]:
    """Whether the responses to each prompt score differently: G of them."""
    return [not equal for equal in equal_groups(config, sampled.scores, sampled.rollout).tolist()]


def sampling_metrics(
    teaches: Sequence[Sequence[bool]], places: Sequence[Place]
) -> dict[str, float]:
    """What the rounds took, by the metrics' names."""
    useless = sum(not teaches[r][g] for r, g in places)
    return {
        "ppo/sampling_rounds": len(teaches),
        "ppo/dropped_groups_fraction": 1 - len(places) / sum(map(len, teaches)),
        "ppo/filled_groups_fraction": useless / len(places),
    }
