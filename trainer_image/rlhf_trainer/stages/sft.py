"""Supervised fine-tuning: the model learns to give the answers of a data set.

    loss = −1/n Σ_t log π(y_t | y_<t)      over the n tokens of the global batch that count

Shapes: N packed tokens, M tokens that count, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rlhf_api.run import StageResult
from rlhf_api.stages import SFTStage
from torch import Tensor

from rlhf_trainer import evaluate
from rlhf_trainer.data.answer_rows import padded_cells
from rlhf_trainer.data.batches import global_batch, steps_in
from rlhf_trainer.data.encode import Encoded
from rlhf_trainer.data.stage_rows import sft_rows, write_left_out
from rlhf_trainer.engine import Engine, model_dtype, on_device
from rlhf_trainer.logprobs import packed_logprobs
from rlhf_trainer.lora import add_lora
from rlhf_trainer.losses import sft_loss
from rlhf_trainer.models import load_policy
from rlhf_trainer.scored_lm import ScoredLM, TokenBatch
from rlhf_trainer.sequences import pack_rows
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import (
    Contribution,
    StepBatch,
    commit,
    done,
    fit,
    mean_over_ranks,
    shares,
)


def train(session: Session) -> StageResult:
    """One attempt of the stage, on one rank."""
    config = session.config
    assert isinstance(config, SFTStage)
    rows = sft_rows(config, session.tokenizer, session.run.paths, session.run.seed)
    if session.ranks.is_main:
        write_left_out(Path(session.run.output), rows)

    ranks = session.ranks
    lm: Any = on_device(load_policy(session.run, dtype=model_dtype(config, ranks)), config, ranks)
    before = evaluate.answer_as_base(session, lm)
    trained = lm if config.lora is None else add_lora(lm, config.lora)
    model = ScoredLM(trained, packs=config.packing)
    total = steps_in(len(rows.train), config.global_batch_size, config.epochs, config.max_steps)
    engine = Engine.create(model, config, ranks=ranks, total_steps=total)
    task = _Task(session, config, rows.train, rows.heldout, total, model.is_packable)

    def write(directory: Path) -> None:
        session.save_policy(engine, trained, directory)

    fitted = fit(session, engine, task, write)
    checkpoint, metrics = commit(session, fitted, write)
    metrics |= before | evaluate.answer_as(session, session.run.stage)
    return done(session, fitted.step, checkpoint, metrics)


class _MicroBatch(NamedTuple):
    tokens: TokenBatch  # whose targets are the tokens that count
    tokens_in_all: int  # that count, in the global batch


class _Task:
    """What SFT tells the loop of supervised stages."""

    better, higher_is_better = "eval/loss", False

    def __init__(
        self,
        session: Session,
        config: SFTStage,
        train: Sequence[Encoded],
        heldout: Sequence[Encoded],
        total_steps: int,
        is_packable: bool,
    ) -> None:
        self.session, self.config = session, config
        self.train, self.heldout = train, heldout
        self.total_steps, self.is_packable = total_steps, is_packable
        self._lengths = {"train": lengths_of(train), "heldout": lengths_of(heldout)}

    def batch(self, step: int) -> StepBatch[_MicroBatch]:
        config, seed = self.config, self.session.run.seed
        chosen = global_batch(len(self.train), config.global_batch_size, seed, step)
        mine = list(self._micro_batches(self.train, self._lengths["train"], chosen))
        lengths = [m.tokens.packed.lengths for m in mine]
        tokens = sum(map(sum, lengths))
        cells = tokens if self.is_packable else sum(map(padded_cells, lengths))
        return StepBatch(mine, [self.train[i].id for i in chosen], tokens, cells)

    def contribution(self, engine: Engine, micro_batch: _MicroBatch) -> Contribution:
        logprobs_M, hits_M = engine(micro_batch.tokens, _logprobs_and_hits)
        count = max(micro_batch.tokens_in_all, 1)
        loss = sft_loss(logprobs_M, torch.ones_like(hits_M), count)
        return Contribution(loss, {"train/accuracy": hits_M.sum() / count})

    @torch.no_grad()
    def evaluate(self, engine: Engine) -> dict[str, float]:
        if not self.heldout:
            return {}
        engine.module.eval()
        everything = range(len(self.heldout))
        mine = self._micro_batches(self.heldout, self._lengths["heldout"], everything)
        parts = (self.contribution(engine, micro_batch) for micro_batch in mine)
        named = ({"eval/loss": p.loss, "eval/accuracy": p.figures["train/accuracy"]} for p in parts)
        return mean_over_ranks(self.session, named, ("eval/loss", "eval/accuracy"))

    def _micro_batches(
        self, rows: Sequence[Encoded], lengths: Sequence[int], chosen: Sequence[int]
    ) -> Iterator[_MicroBatch]:
        """This rank's micro-batches of the chosen rows, each laid out as it is asked for."""
        parts = shares(chosen, lengths, self.config, self.is_packable, self.session.ranks)
        tokens_in_all = sum(sum(rows[i].loss_mask[1:]) for i in chosen)
        return (self._packed([rows[i] for i in part], tokens_in_all) for part in parts)

    def _packed(self, rows: Sequence[Encoded], tokens_in_all: int) -> _MicroBatch:
        device = self.session.ranks.device
        if not rows:  # a rank without rows computes one token that does not count
            rows = [Encoded("", [int(self.session.tokenizer.eos_token_id)], [False])]
        packed = pack_rows([row.tokens for row in rows], device)
        counts = (c for row in rows for c in (False, *row.loss_mask[1:]))
        counted = [position for position, counts_in in enumerate(counts) if counts_in]
        at_M = torch.tensor(counted, dtype=torch.long, device=device)
        tokens = TokenBatch(packed, at_M - 1, packed.input_ids[0, at_M])
        return _MicroBatch(tokens, tokens_in_all)


def lengths_of(rows: Sequence[Encoded]) -> list[int]:
    """Tokens of each row: counted once, as a step must not take longer where there are more."""
    return [len(row.tokens) for row in rows]


def _logprobs_and_hits(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, ...]:
    """log π of each target, and whether it is the likeliest token."""
    return packed_logprobs(logits_CV, targets_C), logits_CV.argmax(-1) == targets_C
