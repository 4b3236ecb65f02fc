"""What every stage's `train(session)` works with."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from rlhf_api.run import StageRun
from rlhf_api.stages import AnyStage

from rlhf_trainer.checkpoints.checkpoint import Checkpointer
from rlhf_trainer.checkpoints.disk import open_disk
from rlhf_trainer.checkpoints.vouched import verify_inputs
from rlhf_trainer.data.digests import refuse_changed_sources
from rlhf_trainer.data.kept import Kept, key_of
from rlhf_trainer.data.load import Loaded
from rlhf_trainer.data.stage_rows import Recipe
from rlhf_trainer.guards import Guard
from rlhf_trainer.models.context import refuse_beyond_context, refuse_unknown_tokens
from rlhf_trainer.ranks import Ranks, left_open
from rlhf_trainer.telemetry import Telemetry

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from rlhf_trainer.engine import Engine


class Closable(Protocol):
    """Something that ends with the session."""

    def close(self) -> None:
        """Give back what it holds."""


C = TypeVar("C", bound=Closable)
E = TypeVar("E")


@dataclass(frozen=True)
class Session:
    """One attempt of one stage, on one rank."""

    run: StageRun
    ranks: Ranks
    tokenizer: PreTrainedTokenizerBase
    telemetry: Telemetry
    checkpointer: Checkpointer
    guard: Guard
    _made: dict[str, Closable] = field(default_factory=dict)

    @property
    def config(self) -> AnyStage:
        """The stage's settings."""
        return self.run.config

    @classmethod
    def open(cls, run: StageRun) -> Session:
        """Join the ranks and open all that a stage needs. Close it with `close`."""
        from rlhf_trainer.models.tokenizers import load_tokenizer

        ranks = Ranks.start()
        guard = Guard(ranks)
        disk = open_disk(run, ranks)
        disk.bring_inputs(run)
        verify_inputs(run, ranks, disk.sharing)
        ranks.on_main(lambda: refuse_changed_sources(run))
        ranks.on_main(lambda: refuse_beyond_context(run))
        os.makedirs(run.output, exist_ok=True)
        tokenizer = load_tokenizer(run)
        ranks.on_main(lambda: refuse_unknown_tokens(run, tokenizer))
        guard.listen()
        return cls(
            run=run,
            ranks=ranks,
            tokenizer=tokenizer,
            telemetry=Telemetry(run, ranks),
            checkpointer=Checkpointer(run, ranks, run.config.checkpointing.keep, disk),
            guard=guard,
        )

    def save_policy(self, engine: Engine, model: nn.Module, directory: Path) -> None:
        """Write a policy as the stage hands it on; a collective. `model` is in `engine`.

        Under ZeRO-3 a model is gathered layer by layer, as it may be larger than a device. One with
        an adapter that is handed on alone is gathered as a whole.
        """
        from rlhf_trainer.models.language_models import save_model
        from rlhf_trainer.models.lora import HubModel
        from rlhf_trainer.models.whole_weights import merged_state_dict

        lora = self.config.lora
        hands_on_adapter = lora is not None and lora.output == "adapter"
        state = None if hands_on_adapter else merged_state_dict(model, self.ranks.is_main)
        with engine.gathered() if hands_on_adapter else nullcontext():
            if self.ranks.is_main:
                hub = HubModel.of_start(self.run)
                save_model(model, self.tokenizer, directory, lora, hub, state)

    def rows(self, recipe: Recipe[E], part: str = "data", source: str | None = None) -> Loaded[E]:
        """The rows of a data set of the stage, named by its place below the stage: as they are
        kept, or else read and encoded, by one process on each disk. `source`: the field that names
        the data, where that is another stage's. A collective. Raises BadData.
        """
        run, disk = self.run, self.checkpointer.disk
        name = f"stages.{run.stage}.{part}"
        key = self.ranks.on_main(
            lambda: key_of(recipe, run.sources.get(source or name), self.tokenizer, run.seed)
        )
        kept = Kept.of(run, name, recipe, self.tokenizer, key)
        disk.bring_spare(kept.path)

        def fill() -> None:
            if kept.fill():
                disk.keep_spare(kept.path)

        disk.once(fill)
        return kept.rows()

    def once(self, name: str, make: Callable[[], C]) -> C:
        """What was made by this name, or is now: it outlives a roll-back and ends with `close`."""
        if name not in self._made:
            self._made[name] = make()
        return cast(C, self._made[name])

    def finish(self) -> None:
        """End as planned: whatever was committed and recorded is kept. A collective."""
        self.telemetry.close()
        self.checkpointer.disk.settle()

    def close(self, together: bool = True) -> None:
        """Flush what is open, end what was made once, and leave the group, however it ended; also
        where a full disk takes no more records, or threads of the rest would hold the process.

        Not `together`, the other ranks may wait for this one in a collective: what has a
        communicator of its own ends with the process.
        """
        with ExitStack() as ends:  # the last one goes first, and each whatever the others raise
            ends.callback(self.ranks.stop, together)
            ends.callback(self.checkpointer.disk.close)
            for made in reversed(self._made.values()) if together or not left_open() else ():
                ends.callback(made.close)
            ends.callback(self.telemetry.close)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and CUDA), the same on every rank: weights that are drawn
    must agree, and what must differ between ranks is derived from the row or the rank by its user.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
