"""Batches as arithmetic on (seed, step), micro-batches, packing."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_trainer.data.batches import (
    further_rows,
    global_batch,
    micro_batches,
    pack,
    pad_fraction,
    steps_in,
)

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=50)


def test_each_pass_has_every_row_once_in_an_order_of_its_own() -> None:
    rows = [i for step in range(12) for i in global_batch(20, 5, 7, step)]
    passes = [rows[k : k + 20] for k in range(0, 60, 20)]
    assert all(sorted(part) == list(range(20)) for part in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    forwards = [global_batch(17, 5, 7, step) for step in range(9)]
    assert [global_batch(17, 5, 7, step) for step in reversed(range(9))] == forwards[::-1]
    assert global_batch(17, 5, 8, 0) != forwards[0]


def test_a_batch_reaches_into_the_next_pass() -> None:
    assert len(global_batch(7, 5, 1, 1)) == 5
    assert len(set(global_batch(7, 7, 1, 3))) == 7
    assert Counter(global_batch(3, 6, 1, 0)) == {0: 2, 1: 2, 2: 2}


def test_what_a_step_draws_beyond_its_batch_is_all_the_others_first_and_then_goes_round() -> None:
    batch = global_batch(10, 4, 7, 3)
    drawn = [i for draw in (1, 2, 3, 4, 5) for i in further_rows(10, 4, 7, 3, draw)]
    assert sorted(drawn[:10]) == list(range(10))
    assert set(drawn[:6]).isdisjoint(batch)
    assert set(drawn[6:10]) == set(batch)
    assert drawn[10:] == drawn[:10]
    assert further_rows(10, 4, 7, 4, 1) != drawn[:4] != further_rows(10, 4, 8, 3, 1)
    assert further_rows(3, 5, 7, 0, 2) == (further_rows(3, 3, 7, 0, 1) * 4)[5:10]


def test_the_order_of_a_pass_takes_eight_bytes_a_row() -> None:
    global_batch(3, 5, 7, 0)  # which loads what numpy loads late
    tracemalloc.start()
    try:
        global_batch(100_003, 5, 7, 0)
        assert tracemalloc.get_traced_memory()[0] < 9 * 100_003
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "cap", "steps"),
    [
        (100, 64, 1.0, None, 2),
        (100, 10, 2.5, None, 25),
        (100, 10, 2.5, 7, 7),
        (3, 64, 0.1, None, 1),
    ],
)
def test_steps_of_a_stage(
    rows: int, batch: int, epochs: float, cap: int | None, steps: int
) -> None:
    assert steps_in(rows, batch, epochs, cap) == steps


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5))
def test_micro_batches_hold_each_row_once_and_are_equally_many(
    lengths: list[int], size: int, world: int
) -> None:
    parts = micro_batches(range(len(lengths)), lengths, size, world)
    assert sorted(i for rank in parts for part in rank for i in part) == list(range(len(lengths)))
    assert len({len(rank) for rank in parts}) == 1
    assert all(len(part) <= size for rank in parts for part in rank)


@given(LENGTHS, st.integers(10, 80))
def test_packs_hold_each_row_once_within_their_capacity(lengths: list[int], capacity: int) -> None:
    bins = pack(range(len(lengths)), lengths, capacity)
    assert sorted(i for part in bins for i in part) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in part) <= capacity or len(part) == 1 for part in bins)
    used = sum(min(length, capacity) for length in lengths)
    assert len(bins) <= 2 * -(-used // capacity)  # any first-fit fills all bins but one by half


@given(LENGTHS, st.integers(10, 80))
def test_a_row_goes_into_the_first_pack_that_has_room(lengths: list[int], capacity: int) -> None:
    bins: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [part for part in bins if sum(lengths[k] for k in part) + lengths[i] <= capacity]
        if not fits:
            bins.append([])
        (fits or bins[-1:])[0].append(i)
    assert pack(range(len(lengths)), lengths, capacity) == bins


def test_a_hundred_thousand_held_out_rows_are_packed_in_seconds() -> None:
    lengths = [20 + i * 7919 % 1500 for i in range(100_000)]
    began = time.process_time()
    assert len(pack(range(len(lengths)), lengths, 4096)) < 20_000
    assert time.process_time() - began < 10  # a minute where each row looks at all packs


def test_rows_of_like_length_go_together() -> None:
    lengths = [1, 60] * 16
    parts = micro_batches(range(32), lengths, 4, 1)[0]
    assert pad_fraction(parts, lengths) == 0
    assert pad_fraction([list(range(k, k + 4)) for k in range(0, 32, 4)], lengths) > 0.49
