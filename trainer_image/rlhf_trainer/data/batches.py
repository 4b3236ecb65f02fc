"""Which rows are in which step, on which rank, in which micro-batch.

All of it is arithmetic on (seed, step): a resumed run needs no position to be restored, and the
rows of a step are the same however many ranks there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


def steps_in(
    num_rows: int, global_batch_size: int, epochs: float, max_steps: int | None = None
) -> int:
    """Optimizer steps of a stage: enough for `epochs` passes, at most `max_steps`."""
    steps = max(1, math.ceil(round(num_rows * epochs) / global_batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def global_batch(num_rows: int, global_batch_size: int, seed: int, step: int) -> list[int]:
    """Rows of a step (counted from 0): the next ones in an endless row of shuffled passes.

    A batch may reach into the next pass; each row comes once in each pass. The last batch of a
    stage is whole too: a few rows alone would make a step of full size from a noisy gradient.
    """
    start = step * global_batch_size
    stop = start + global_batch_size
    places = (divmod(i, num_rows) for i in range(start, stop))
    return [int(_shuffled(num_rows, seed, epoch)[place]) for epoch, place in places]


def further_rows(num_rows: int, size: int, seed: int, step: int, draw: int) -> list[int]:
    """Rows that a step may have beside its batch of `size`, as many in each further draw (from 1):
    those that are not in the batch, in an order of this step's own; then the batch's; then anew.
    """
    batch = global_batch(num_rows, size, seed, step)
    order = np.random.default_rng([seed, step, 0, 1]).permutation(num_rows)
    is_in_batch = np.isin(order, batch)
    cycle = np.concatenate([order[~is_in_batch], order[is_in_batch]])
    return [int(cycle[i % num_rows]) for i in range((draw - 1) * size, draw * size)]


@lru_cache(maxsize=4)
def _shuffled(num_rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def micro_batches(
    indices: Sequence[int], lengths: Sequence[int], micro_batch_size: int, world_size: int
) -> list[list[list[int]]]:
    """For each rank its micro-batches, equally many for all: an empty one where rows run out.

    `lengths[i]` are the tokens of row i. Rows of like length go together, longest first, so that
    pads are few and memory runs out in the first micro-batch or never; neighbours go to different
    ranks, so that ranks wait for each other little.
    """
    ordered = sorted(indices, key=lambda i: (-lengths[i], i))
    chunks = [ordered[k : k + micro_batch_size] for k in range(0, len(ordered), micro_batch_size)]
    if len(chunks) < world_size:  # rather small micro-batches than ranks without work
        chunks = [ordered[k::world_size] for k in range(world_size)]
    rounds = math.ceil(len(chunks) / world_size)
    chunks += [[] for _ in range(rounds * world_size - len(chunks))]
    return [chunks[rank::world_size] for rank in range(world_size)]


def pack(indices: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows in as few bins of `capacity` tokens as first-fit decreasing finds.

    The rows of a bin go end to end through the model (`sequences.pack_rows`), where none of them
    sees another. A row above the capacity has a bin of its own.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    place, length = 0, -1
    for i in sorted(indices, key=lambda i: (-lengths[i], i)):
        if lengths[i] != length:  # rows of one length: where one had no room, the next has none
            place, length = 0, lengths[i]
        place = next((k for k in range(place, len(room)) if room[k] >= length), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(capacity)
        bins[place].append(i)
        room[place] -= length
    return bins


def pad_fraction(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Share of pads if each micro-batch is padded to its longest row."""
    cells = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches if batch)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / cells if cells else 0.0
