"""Supervised fine-tuning: the model learns to give the answers of a data set.

    loss = −1/n Σ_t log π(y_t | y_<t)      over the n tokens of the global batch that count

Shapes: N packed tokens, M tokens that count, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from rlhf_api.run import StageResult
from rlhf_api.stages import SFTStage
from torch import Tensor

from rlhf_trainer import evaluate
from rlhf_trainer.data.batches import steps_in
from rlhf_trainer.data.encode import Encoded
from rlhf_trainer.data.stage_rows import sft_rows, write_left_out
from rlhf_trainer.engine import Engine, model_dtype, on_device
from rlhf_trainer.logprobs import packed_logprobs
from rlhf_trainer.losses import sft_loss
from rlhf_trainer.models.language_models import load_policy
from rlhf_trainer.models.lora import add_lora, plain_model
from rlhf_trainer.models.neftune import noise_seed, noisy_embeddings
from rlhf_trainer.models.scored_lm import ScoredLM, TokenBatch
from rlhf_trainer.sequences import pack_rows
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import commit, done, fit
from rlhf_trainer.task import Contribution, StepBatch, Task


def train(session: Session) -> StageResult:
    """One attempt of the stage, on one rank."""
    config = session.config
    assert isinstance(config, SFTStage)
    rows = session.rows(sft_rows(config))
    if session.ranks.is_main:
        write_left_out(Path(session.run.output), rows)

    ranks = session.ranks
    lm: Any = on_device(load_policy(session.run, dtype=model_dtype(config, ranks)), config, ranks)
    before = evaluate.answer_as_base(session, lm)
    trained = lm if config.lora is None else add_lora(lm, config.lora)
    model = ScoredLM(trained, packs=config.packing)
    total = steps_in(len(rows.train), config.global_batch_size, config.epochs, config.max_steps)
    engine = Engine.create(model, config, ranks=ranks, total_steps=total)
    task = SFTTask(session, config, rows.train, rows.heldout, total, model.is_packable)

    def write(directory: Path) -> None:
        session.save_policy(engine, trained, directory)

    fitted = fit(session, engine, task, write)
    checkpoint, metrics = commit(session, fitted, write)
    metrics |= before | evaluate.answer_as(session, session.run.stage)
    return done(session, fitted.step, checkpoint, metrics)


class MicroBatch(NamedTuple):
    """Rows, of which the tokens that count are the targets."""

    rows: TokenBatch
    tokens_in_all: int  # that count, in the global batch
    ids: Sequence[str]  # of its rows
    seeds: Sequence[int] = ()  # of their noise; empty: they have none


class SFTTask(Task[Encoded, MicroBatch, int]):
    """What SFT tells the loop of supervised stages."""

    def lengths_of(self, examples: Sequence[Encoded]) -> list[int]:
        """Tokens of each dialogue."""
        return [len(row.tokens) for row in examples]

    def batch(self, step: int) -> StepBatch[MicroBatch]:
        """With seeds of noise, where there is to be noise."""
        batch = super().batch(step)
        if self.noise_alpha is None:
            return batch
        seed = self.session.run.seed
        seeds = [[noise_seed(seed, step, i) for i in part.ids] for part in batch.micro_batches]
        parts = zip(batch.micro_batches, seeds, strict=True)
        return batch._replace(micro_batches=[part._replace(seeds=s) for part, s in parts])

    @property
    def noise_alpha(self) -> float | None:
        """NEFTune's α."""
        assert isinstance(self.settings, SFTStage)
        return self.settings.neftune_noise_alpha

    def of_whole(self, whole: Sequence[Encoded], parts: Sequence[Sequence[Encoded]]) -> int:
        """Tokens that count."""
        return sum(sum(row.loss_mask[1:]) for row in whole)

    def laid(self, examples: Sequence[Encoded], of_whole: int) -> MicroBatch:
        """The dialogues end to end."""
        device = self.session.ranks.device
        if not examples:
            examples = [Encoded("", [int(self.session.tokenizer.eos_token_id)], [False])]
        packed = pack_rows([row.tokens for row in examples], device)
        counts = (c for row in examples for c in (False, *row.loss_mask[1:]))
        counted = [position for position, counts_in in enumerate(counts) if counts_in]
        at_M = torch.tensor(counted, dtype=torch.long, device=device)
        targets_M = packed.input_ids[0, at_M]
        ids = [row.id for row in examples]
        return MicroBatch(TokenBatch(packed, at_M - 1, targets_M), of_whole, ids)

    def contribution(self, engine: Engine, micro_batch: MicroBatch) -> Contribution:
        """Σ over tokens that count of the loss, over all of the global batch."""
        with self._noise_on(engine, micro_batch):
            logprobs_M, hits_M = engine(micro_batch.rows, _logprobs_and_hits)
        count = max(micro_batch.tokens_in_all, 1)
        loss = sft_loss(logprobs_M, torch.ones_like(hits_M), count)
        return Contribution(loss, {"train/accuracy": hits_M.sum() / count})

    def _noise_on(self, engine: Engine, micro_batch: MicroBatch) -> AbstractContextManager[None]:
        if self.noise_alpha is None or not micro_batch.seeds:
            return nullcontext()
        embedding = plain_model(cast(ScoredLM, engine.module).lm).get_input_embeddings()
        lengths = micro_batch.rows.packed.lengths
        return noisy_embeddings(embedding, lengths, micro_batch.seeds, self.noise_alpha)


def _logprobs_and_hits(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, ...]:
    """log π of each target, and whether it is the likeliest token."""
    return packed_logprobs(logits_CV, targets_C), logits_CV.argmax(-1) == targets_C
