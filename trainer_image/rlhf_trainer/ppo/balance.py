"""Micro-batches of equal work in PPO: which rows a rank computes at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rlhf_api.stages.ppo import PPOStage

Shares = list[list[list[int]]]
"""Of each rank its micro-batches, of each of them its rows."""


def tokens_at_once(config: PPOStage) -> int:
    """Tokens of a micro-batch at most: microBatchSize rows of the longest kind; of shorter rows,
    so many more.
    """
    longest = config.rollout.max_prompt_length + config.rollout.max_new_tokens
    return config.micro_batch_size * longest


def balanced_micro_batches(
    rows: Sequence[int], lengths: Sequence[int], capacity: int, world_size: int
) -> Shares:
    """For each rank its micro-batches of about equally many tokens, at most `capacity`; all ranks
    get equally many. Rows of a micro-batch are ordered by length.
    """
    return _assigned([[i] for i in rows], lengths, capacity, world_size)


def micro_batches_by_prompt(
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    capacity: int,
    world_size: int,
) -> Shares:
    """`balanced_micro_batches` in which rows with the same prompt meet, as they compute it once.

    Of an assignment of whole groups, of halves of them, of quarters, … and of single rows it is the
    one after which all ranks are done first. `capacity` counts each row whole: attention keeps that
    much of rows that share a prompt, too.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(rows, key=lambda i: (-lengths[i], i)):
        groups.setdefault(tuple(prompts[i]), []).append(i)

    number = {i: n for n, group in enumerate(groups.values()) for i in group}

    def computed(micro: Sequence[int]) -> int:
        """Tokens of a micro-batch, a prompt's once but for its last."""
        shared = {number[i]: len(prompts[i]) - 1 for i in micro}
        return sum(lengths[i] - shared[number[i]] for i in micro) + sum(shared.values())

    def work(shares: Shares) -> int:
        """Tokens that the busiest rank computes, round after round."""
        return sum(max(map(computed, each)) for each in zip(*shares, strict=True))

    tried = []
    size = max(map(len, groups.values()), default=1)
    while True:
        parts = [p for group in groups.values() for p in _parts(group, size, lengths, capacity)]
        tried.append(_assigned(parts, lengths, capacity, world_size))
        if size == 1:
            return min(tried, key=work)
        size = -(-size // 2)


def _assigned(
    parts: Sequence[list[int]], lengths: Sequence[int], capacity: int, world_size: int
) -> Shares:
    """Parts are assigned longest first, each to the micro-batch with the fewest tokens (Graham
    1969); a micro-batch has more than `capacity` only if it is one part."""
    sizes = [sum(lengths[i] for i in part) for part in parts]
    ordered = sorted(zip(sizes, parts, strict=True), key=lambda each: (-each[0], each[1]))
    rounds = max(1, math.ceil(sum(sizes) / (capacity * world_size)))
    while True:
        bins: list[list[list[int]]] = [[] for _ in range(rounds * world_size)]
        tokens = [0] * len(bins)
        for size, part in ordered:
            lightest = tokens.index(min(tokens))
            bins[lightest].append(part)
            tokens[lightest] += size
        if max(tokens) <= capacity or all(len(b) <= 1 for b in bins):
            break
        rounds += 1
    micros = [sorted((i for p in b for i in p), key=lambda i: (-lengths[i], i)) for b in bins]
    return [micros[rank::world_size] for rank in range(world_size)]


def _parts(
    group: Sequence[int], size: int, lengths: Sequence[int], capacity: int
) -> Iterator[list[int]]:
    """Neighbours of a group, `size` at most and no more than fit."""
    part: list[int] = []
    for i in group:
        if len(part) == size or (part and sum(lengths[k] for k in (*part, i)) > capacity):
            yield part
            part = []
        part.append(i)
    yield part
