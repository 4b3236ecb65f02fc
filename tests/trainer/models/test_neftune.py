"""Noise on embeddings: how much, on which rows, and that nothing else decides it."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_trainer.models.neftune import noise_seed, noisy_embeddings
from torch import nn

ROWS, WIDTH, ALPHA = [[3, 1, 4, 1], [5, 9]], 64, 5.0
SEEDS = [noise_seed(7, 2, f"sft.jsonl:{line}") for line in (1, 2)]


@pytest.fixture
def embedding() -> nn.Embedding:
    return nn.Embedding(10, WIDTH)


def noise(
    embedding: nn.Embedding, ids: list[list[int]], lengths: list[int], seeds: list[int]
) -> torch.Tensor:
    """What the embeddings of these tokens have beside their own."""
    tokens = torch.tensor(ids)
    with noisy_embeddings(embedding, lengths, seeds, ALPHA):
        noisy = embedding(tokens)
    assert torch.equal(embedding(tokens), embedding.weight[tokens])  # within alone
    return (noisy - embedding.weight[tokens]).detach()


def test_a_row_has_noise_of_its_own_length_wherever_it_lies(embedding: nn.Embedding) -> None:
    packed = noise(embedding, [[*ROWS[0], *ROWS[1]]], [4, 2], SEEDS)[0]
    padded = noise(embedding, [ROWS[0], [*ROWS[1], 0, 0]], [4, 2], SEEDS)
    alone = noise(embedding, [ROWS[1]], [2], SEEDS[1:])[0]
    torch.testing.assert_close(padded[0], packed[:4], rtol=0, atol=1e-6)
    torch.testing.assert_close(padded[1, :2], packed[4:], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone, packed[4:], rtol=0, atol=1e-6)
    assert not padded[1, 2:].any()
    for row, length in ((packed[:4], 4), (packed[4:], 2)):
        most = ALPHA / math.sqrt(length * WIDTH)  # 0.3125, 0.442
        assert 0.9 * most < float(row.abs().max()) < most + 1e-6
        assert float(row.mean()) == pytest.approx(0, abs=0.15 * most)


def test_the_noise_of_a_row_is_another_in_each_step_and_of_each_job() -> None:
    places = [(7, 2, "a:1"), (7, 3, "a:1"), (8, 2, "a:1"), (7, 2, "a:2")]
    assert len({noise_seed(*place) for place in places}) == 4
    assert noise_seed(7, 2, "a:1") == noise_seed(7, 2, "a:1") < 2**63


def test_embeddings_train_through_their_noise(embedding: nn.Embedding) -> None:
    with noisy_embeddings(embedding, [2], SEEDS[:1], ALPHA):
        embedding(torch.tensor([[5, 9]])).sum().backward()
    grad = embedding.weight.grad
    assert grad is not None
    assert grad[[5, 9]].eq(1).all()
