"""Rows that are encoded in step: what all of them ask the tokenizer next goes there at once.

Tokenizers' Rust takes two thirds of the time that a row takes, and a list of texts to all CPUs,
where its environment variable lets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rendering import Texts, tokenised_together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARALLELISM: Final = "TOKENIZERS_PARALLELISM"
"""Read at each call."""
E = TypeVar("E")
P = ParamSpec("P")
Steps = Generator[Texts, list[list[int]], E]
"""Yields what is to be tokenised, takes the token ids of each piece, and returns the row."""


@contextmanager
def on_all_cpus() -> Iterator[None]:
    """Where one process encodes, and not each rank."""
    before = os.environ.get(PARALLELISM, "false")
    os.environ[PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[PARALLELISM] = before


class Encoder(Generic[P, E]):
    """Encodes a row: (tokenizer, example, **settings). `steps` are those of one among others."""

    __name__: str

    def __init__(self, steps: Callable[Concatenate[PreTrainedTokenizerBase, P], Steps[E]]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, tokenizer: PreTrainedTokenizerBase, *args: P.args, **kwargs: P.kwargs) -> E:
        """The row. Raises RowProblem."""
        (row,) = together(tokenizer, [self.steps(tokenizer, *args, **kwargs)])
        if isinstance(row, RowProblem):
            raise row
        return row


def together(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Steps[E]]) -> list[E | RowProblem]:
    """The rows in their order, or why there is none."""
    running = dict(enumerate(rows))
    ends: dict[int, E | RowProblem] = {}
    given: dict[int, Any] = dict.fromkeys(running)
    while given:
        asked: dict[int, Texts] = {}
        for index, ids in given.items():
            try:
                asked[index] = running[index].send(ids)
            except StopIteration as end:
                ends[index] = end.value
            except RowProblem as problem:
                ends[index] = problem
        given = dict(zip(asked, tokenised_together(tokenizer, [*asked.values()]), strict=True))
    return [ends[index] for index in running]
