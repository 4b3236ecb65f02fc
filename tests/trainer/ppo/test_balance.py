"""Which rows of PPO are computed at once, and on which rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_api.stages.ppo import PPOStage
from rlhf_trainer.ppo.balance import Shares, balanced_micro_batches, micro_batches_by_prompt
from rlhf_trainer.ppo.update import minibatches

ASKED, OTHER = [7] * 60, [8] * 60


def rows_of(shares: Shares) -> list[int]:
    return sorted(i for rank in shares for micro in rank for i in micro)


def by_prompt(prompts: list[list[int]], answer: int, capacity: int, ranks: int) -> Shares:
    lengths = [len(prompt) + answer for prompt in prompts]
    return micro_batches_by_prompt(range(len(prompts)), prompts, lengths, capacity, ranks)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), max_size=24),
    st.integers(20, 200),
    st.integers(1, 4),
)
def test_each_row_is_computed_once_by_ranks_in_step_and_within_bounds(
    asked: list[tuple[int, int]], capacity: int, ranks: int
) -> None:
    prompts = [[kind] * 10 * kind for kind, _ in asked]
    lengths = [10 * kind + answer for kind, answer in asked]
    shares = micro_batches_by_prompt(range(len(asked)), prompts, lengths, capacity, ranks)
    assert rows_of(shares) == list(range(len(asked)))
    assert len(shares) == ranks
    assert len({len(rank) for rank in shares}) == 1
    for micro in (micro for rank in shares for micro in rank):
        assert len(micro) <= 1 or sum(lengths[i] for i in micro) <= capacity
        assert [lengths[i] for i in micro] == sorted((lengths[i] for i in micro), reverse=True)


@given(st.lists(st.integers(1, 60), max_size=16), st.integers(60, 200), st.integers(1, 4))
def test_prompts_that_nothing_shares_are_assigned_by_length_alone(
    lengths: list[int], capacity: int, ranks: int
) -> None:
    rows = range(len(lengths))
    prompts = [[number] for number in rows]
    found = micro_batches_by_prompt(rows, prompts, lengths, capacity, ranks)
    assert found == balanced_micro_batches(rows, lengths, capacity, ranks)


def test_samples_of_a_prompt_meet_on_one_rank() -> None:
    prompts = [ASKED, OTHER] * 4
    assert by_prompt(prompts, 4, 1000, 2) == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]


def test_one_prompt_for_all_ranks_is_shared_out_all_the_same() -> None:
    assert by_prompt([ASKED] * 8, 100, 1000, 4) == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]


def test_samples_that_do_not_fit_at_once_are_cut() -> None:
    assert by_prompt([ASKED] * 4, 20, 160, 1) == [[[0, 1], [2, 3]]]


def settings(samples: int, minibatch: int) -> PPOStage:
    return PPOStage.model_validate(
        {
            "data": {"source": "p.jsonl"},
            "rewards": {"r": {"function": {"entrypoint": "a:b", "source": "code"}}},
            "globalBatchSize": 24,
            "minibatchSize": minibatch,
            "updateEpochs": 2,
            "rollout": {"samplesPerPrompt": samples},
        }
    )


@pytest.mark.parametrize(("samples", "minibatch"), [(4, 8), (4, 6), (1, 5)])
def test_an_epoch_takes_each_row_once_and_the_samples_of_a_prompt_together(
    samples: int, minibatch: int
) -> None:
    steps = list(minibatches(settings(samples, minibatch), seed=3, rollout=2))
    half = len(steps) // 2
    assert steps[:half] != steps[half:], "both epochs in the same order"
    for epoch in (steps[:half], steps[half:]):
        order = [row for step in epoch for row in step]
        assert sorted(order) == list(range(24))
        assert order != sorted(order)
        groups = [order[at : at + samples] for at in range(0, 24, samples)]
        assert all(len({row // samples for row in group}) == 1 for group in groups)
