"""What SFT, reward model and DPO tell the loop that they share (`supervised.fit`): which examples
are in a step, how ranks share them out, and what they add to loss and figures.

An example is never parted: all of it goes through the model in one micro-batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from rlhf_api.stages.common import Supervised
from torch import Tensor

from rlhf_trainer.data.answer_rows import padded_cells
from rlhf_trainer.data.batches import global_batch, micro_batches, pack
from rlhf_trainer.engine import Engine
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.sequences import Packed
from rlhf_trainer.session import Session


class Identified(Protocol):
    """An example."""

    @property
    def id(self) -> str:
        """``file:line``."""


class Rows(Protocol):
    """What goes through the model at once."""

    @property
    def packed(self) -> Packed:
        """Its tokens."""


class LaidOut(Protocol):
    """A micro-batch."""

    @property
    def rows(self) -> Rows:
        """All rows of its examples."""


Split = Literal["train", "heldout"]
E = TypeVar("E", bound=Identified)
M = TypeVar("M", bound=LaidOut)
W = TypeVar("W")
"""What a micro-batch has to know of its whole global batch."""


class StepBatch(NamedTuple, Generic[M]):
    """This rank's share of one global batch."""

    micro_batches: Sequence[M]  # equally many on every rank
    row_ids: Sequence[str]
    tokens: int  # of its rows, on this rank; a prompt counts for each of its answers
    padded: int  # of the same rectangles, pads included


class Contribution(NamedTuple):
    """What one micro-batch adds to the global batch's figures."""

    loss: Tensor  # a scalar, divided by the *global* count already
    figures: Mapping[str, Tensor]  # scalars that add up over micro-batches and ranks


class Task(ABC, Generic[E, M, W]):
    """A stage's examples and its loss."""

    evaluated: ClassVar[Mapping[str, str]] = {"train/accuracy": "eval/accuracy"}
    """Figures of a contribution that are reported of held-out examples, and their names there."""

    def __init__(
        self,
        session: Session,
        config: Supervised,
        train: Sequence[E],
        heldout: Sequence[E],
        total_steps: int,
        is_packable: bool,
    ) -> None:
        self.session, self.settings = session, config
        self.train, self.heldout = train, heldout
        self.total_steps, self.is_packable = total_steps, is_packable
        # Counted once: a step must not take longer where there are more examples.
        self._lengths = {"train": self.lengths_of(train), "heldout": self.lengths_of(heldout)}

    @abstractmethod
    def lengths_of(self, examples: Sequence[E]) -> list[int]:
        """Tokens of each example."""

    @abstractmethod
    def of_whole(self, whole: Sequence[E], parts: Sequence[Sequence[E]]) -> W:
        """What is to be known of a global batch; `parts`: this rank's micro-batches of it."""

    @abstractmethod
    def laid(self, examples: Sequence[E], of_whole: W) -> M:
        """A micro-batch of these examples. There may be none: then of a token that does not count,
        as a rank without examples makes its forward and backward pass all the same."""

    @abstractmethod
    def contribution(self, engine: Engine, micro_batch: M) -> Contribution:
        """Loss and figures of a micro-batch, each a share of the global batch's."""

    def batch(self, step: int) -> StepBatch[M]:
        """This rank's examples of a step; a pure function of it, so that a resume sees the same."""
        seed, size = self.session.run.seed, self.settings.global_batch_size
        chosen = global_batch(len(self.train), size, seed, step)
        whole = [self.train[i] for i in chosen]
        mine = list(self.micro_batches("train", chosen, whole))
        lengths = [micro_batch.rows.packed.lengths for micro_batch in mine]
        tokens = sum(map(sum, lengths))
        cells = tokens if self.is_packable else sum(map(padded_cells, lengths))
        return StepBatch(mine, [example.id for example in whole], tokens, cells)

    @torch.no_grad()
    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Loss and figures of the held-out examples, the same on every rank; empty where there are
        none."""
        if not self.heldout:
            return {}
        engine.module.eval()
        whole = list(self.heldout)
        everything = self.micro_batches("heldout", range(len(whole)), whole)
        mine = (self.contribution(engine, micro_batch) for micro_batch in everything)
        parts = (
            {"eval/loss": loss} | {name: figures[of] for of, name in self.evaluated.items()}
            for loss, figures in mine
        )
        return _sums(self.session.ranks, parts, ("eval/loss", *self.evaluated.values()))

    def micro_batches(self, split: Split, chosen: Sequence[int], whole: Sequence[E]) -> Iterator[M]:
        """This rank's micro-batches of the chosen examples, which are `whole`; on all ranks equally
        many. Each is laid out as it is asked for: held-out examples may be many, and need not be
        on the device at once."""
        lengths, ranks = self._lengths[split], self.session.ranks
        mine = shares(chosen, lengths, self.settings, self.is_packable, ranks)
        examples = dict(zip(chosen, whole, strict=True))
        parts = [[examples[i] for i in part] for part in mine]
        of_whole = self.of_whole(whole, parts)
        return (self.laid(part, of_whole) for part in parts)


def shares(
    chosen: Sequence[int],
    lengths: Sequence[int],
    config: Supervised,
    is_packed: bool,
    ranks: Ranks,
) -> list[list[int]]:
    """This rank's micro-batches of the chosen rows; equally many on all ranks, some maybe empty.

    A micro-batch computes at most microBatchSize · maxLength tokens: as so many rows, or packed, as
    many rows as fit.
    """
    if not is_packed:
        return micro_batches(chosen, lengths, config.micro_batch_size, ranks.world_size)[ranks.rank]
    bins = pack(chosen, lengths, config.micro_batch_size * config.max_length)
    if len(bins) < ranks.world_size:  # rather small micro-batches than ranks without work
        ordered = sorted(chosen, key=lambda i: (-lengths[i], i))
        bins = [ordered[k :: ranks.world_size] for k in range(ranks.world_size)]
    bins += [[]] * (-len(bins) % ranks.world_size)
    return bins[ranks.rank :: ranks.world_size]


def _sums(
    ranks: Ranks, parts: Iterable[Mapping[str, Tensor]], names: Sequence[str]
) -> dict[str, float]:
    """Figures added up over this rank's micro-batches and over ranks."""
    total = torch.zeros(len(names), dtype=torch.float64)
    for part in parts:
        total += torch.stack([part[name].detach().double().cpu() for name in names])
    return dict(zip(names, ranks.sum(total).tolist(), strict=True))
