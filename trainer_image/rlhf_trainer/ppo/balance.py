"""Micro-batches of equal work in PPO: which rows a rank computes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_api.stages.ppo import PPOStage


def tokens_at_once(config: PPOStage) -> int:
    """Tokens of a micro-batch at most: microBatchSize rows of the longest kind; of shorter rows,
    so many more.
    """
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    return config.micro_batch_size * longest


def balanced_micro_batches(
    rows: Sequence[int], lengths: Sequence[int], capacity: int, world_size: int
) -> list[list[list[int]]]:
    """For each rank its micro-batches of about equally many tokens, at most `capacity`; all ranks
    get equally many. Rows of a micro-batch are ordered by length. Rows are assigned longest first,
    each to the micro-batch with the fewest tokens (Graham 1969).
    """
    ordered = sorted(rows, key=lambda i: (-lengths[i], i))
    rounds = max(1, math.ceil(sum(lengths[i] for i in ordered) / (capacity * world_size)))
    while True:
        bins: list[list[int]] = [[] for _ in range(rounds * world_size)]
        tokens = [0] * len(bins)
        for i in ordered:
            lightest = tokens.index(min(tokens))
            bins[lightest].append(i)
            tokens[lightest] += lengths[i]
        if max(tokens) <= capacity or all(len(b) <= 1 for b in bins):
            return [bins[rank::world_size] for rank in range(world_size)]
        rounds += 1
