"""Rows by several processes: what one process gives, and what becomes of one that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
from rlhf_trainer.data import in_order as module
from rlhf_trainer.data.in_order import in_order
from rlhf_trainer.errors import Transient


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    """Items enough for two processes, of which each is given a few."""
    monkeypatch.setattr(module, "WORTH_A_PROCESS", 20)
    monkeypatch.setattr(module, "CHUNK", 3)
    return range(40)


def of_process(item: int) -> tuple[int, int]:
    return item, os.getpid()


def refused(item: int) -> int:
    raise ValueError(f"no {item}")


def killed(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL if item else signal.SIGTERM)
    return item


def test_what_two_processes_make_comes_in_the_order_of_the_items(many: Sequence[int]) -> None:
    found = list(in_order(of_process, many, cpus=2))
    assert [item for item, _ in found] == list(many)
    assert len({process for _, process in found} - {os.getpid()}) == 2


@pytest.mark.parametrize(("cpus", "items"), [(1, range(40)), (9, range(39))])
def test_few_items_or_one_cpu_take_no_process(
    cpus: int, items: Sequence[int], many: Sequence[int]
) -> None:
    assert {process for _, process in in_order(of_process, items, cpus)} == {os.getpid()}


def test_what_cannot_be_sent_is_done_here(many: Sequence[int]) -> None:
    found: Any = in_order(lambda item: of_process(item), many, cpus=2)
    assert {process for _, process in found} == {os.getpid()}


def test_what_the_function_raises_is_raised_with_where_it_was(many: Sequence[int]) -> None:
    with pytest.raises(ValueError, match=r"no \d+") as caught:
        list(in_order(refused, many, cpus=2))
    assert "in refused" in caught.value.__notes__[0]


def test_a_process_that_is_killed_is_told_with_the_signal(many: Sequence[int]) -> None:
    with pytest.raises(Transient, match=r"ended with SIG(KILL: .* resources\.memory|TERM)"):
        list(in_order(killed, many, cpus=2))
