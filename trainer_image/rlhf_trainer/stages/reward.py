"""Reward model: a scalar score that ranks answers as people ranked them.

    loss = mean over queries of  1/n Σ_{i better than j} −log σ(s_i − s_j − margin) + c·(s_i + s_j)²

with n comparisons of one query, all of them in one micro-batch (Ouyang et al. 2022, eq. 1; a pair
is n = 1), and s the score at an answer's last token.

Shapes: R answers of a micro-batch, Q queries, K answers of the query that has most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rlhf_api.run import StageResult
from rlhf_api.stages import RewardStage
from torch import Tensor

from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, by_query
from rlhf_trainer.data.batches import steps_in
from rlhf_trainer.data.each import Each
from rlhf_trainer.data.encode import Answer, Encoded, EncodedPreference
from rlhf_trainer.data.stage_rows import (
    REFERENCE_QUERIES,
    demonstration_rows,
    preference_rows,
    write_left_out,
)
from rlhf_trainer.engine import Engine, model_dtype, on_device
from rlhf_trainer.losses import mean_of_comparisons, ranked_loss, reward_pair_loss
from rlhf_trainer.models.language_models import load_policy, trunk_of
from rlhf_trainer.models.lora import add_lora
from rlhf_trainer.models.scalar_models import (
    REWARD_STATISTICS,
    refuse_without_classifier,
    save_scalar,
    scalar_from_trunk,
    scalar_state_dict,
)
from rlhf_trainer.preference.answer_task import AnswerTask, answer_rows, tokens_of
from rlhf_trainer.sequences import enable_packing, model_inputs, of_packed
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import commit, done, fit
from rlhf_trainer.task import Contribution, shares


def train(session: Session) -> StageResult:
    """One attempt of the stage, on one rank."""
    config, run, ranks = session.config, session.run, session.ranks
    assert isinstance(config, RewardStage)
    rows = session.rows(preference_rows(config))
    if ranks.is_main:
        write_left_out(Path(run.output), rows)

    dtype = model_dtype(config, ranks)
    trunk = on_device(trunk_of(load_policy(run, dtype=dtype)), config, ranks)
    refuse_without_classifier(trunk.config)
    is_packable = enable_packing(trunk)
    model = scalar_from_trunk(trunk, seed=run.seed, dtype=dtype)
    if config.lora is not None:
        model.trunk = add_lora(trunk, config.lora)
    total = steps_in(len(rows.train), config.global_batch_size, config.epochs, config.max_steps)
    engine = Engine.create(model, config, ranks=ranks, total_steps=total)
    learnt, heldout = (Each(Query.of, part) for part in (rows.train, rows.heldout))
    task = RewardTask(session, config, learnt, heldout, total, is_packable)
    reference = reference_queries(session, config, learnt)

    def write(directory: Path) -> None:
        statistics = task.statistics(engine, reference)
        state = scalar_state_dict(model, ranks.is_main)
        if ranks.is_main:
            save_scalar(model, session.tokenizer, directory, statistics, state)

    fitted = fit(session, engine, task, write)
    checkpoint, metrics = commit(session, fitted, write)
    metrics |= _statistics_of(Path(run.output) / "output")
    return done(session, fitted.step, checkpoint, metrics)


class Query(NamedTuple):
    """A prompt with all its answers, best first."""

    id: str
    rows: tuple[AnswerRow, ...]
    ranks: tuple[int, ...]
    margin: float

    @classmethod
    def of(cls, row: EncodedPreference) -> Query:
        """From a row of the data set."""
        rows = tuple(AnswerRow(row.prompt, answer) for answer in row.answers)
        return cls(row.id, rows, row.ranks, row.margin)

    @classmethod
    def of_demonstration(cls, row: Encoded) -> Query:
        """From a dialogue: all of it, as its last answer is scored at its end."""
        return cls(row.id, (AnswerRow([], Answer(row.tokens, row.loss_mask)),), (0,), 0.0)

    def best(self) -> Query:
        """With the best answer alone."""
        return self._replace(rows=self.rows[:1], ranks=self.ranks[:1])


def reference_queries(
    session: Session, config: RewardStage, learnt: Sequence[Query]
) -> list[Query]:
    """Whose answers' scores the model is normalised by, as `normaliseOn` says; at most
    REFERENCE_QUERIES, the same on every rank.

    Demonstrations as in InstructGPT (Ouyang et al. 2022, section 3.5). Of a dialogue of several
    turns the last answer alone is scored, as of PPO's prompts the last answer alone is sampled.
    """
    run = session.run
    if run.demonstrations is not None:
        recipe = demonstration_rows(run.demonstrations)
        rows = session.rows(recipe, "demonstrations", "stages.sft.data").train
        return [Query.of_demonstration(row) for row in rows]
    assert config.normalise_on != "demonstrations"
    drawn = np.random.default_rng(run.seed).permutation(len(learnt))
    queries = [learnt[i] for i in sorted(drawn[:REFERENCE_QUERIES].tolist())]
    return [query.best() for query in queries] if config.normalise_on == "chosen" else queries


class MicroBatch(NamedTuple):
    """Queries with all their answers."""

    rows: AnswerRows
    answers: tuple[int, ...]  # of each query; () on a rank whose rows ran out
    ranks_QK: Tensor
    margin_Q: Tensor
    queries_in_all: int  # of the global batch


class RewardTask(AnswerTask[Query, MicroBatch, int]):
    """What the reward stage tells the loop of supervised stages."""

    def of_whole(self, whole: Sequence[Query], parts: Sequence[Sequence[Query]]) -> int:
        """Queries."""
        return len(whole)

    def laid(self, examples: Sequence[Query], of_whole: int) -> MicroBatch:
        """Queries laid end to end, with what their answers are compared by."""
        device = self.session.ranks.device
        ranks = [torch.tensor(query.ranks, device=device) for query in examples]
        empty = torch.zeros(0, 0, device=device)
        return MicroBatch(
            rows=answer_rows(self.session, examples),
            answers=tuple(len(query.rows) for query in examples),
            ranks_QK=torch.nn.utils.rnn.pad_sequence(ranks, batch_first=True) if ranks else empty,
            margin_Q=torch.tensor([query.margin for query in examples], device=device),
            queries_in_all=of_whole,
        )

    def contribution(self, engine: Engine, micro_batch: MicroBatch) -> Contribution:
        """Σ over the micro-batch's queries of the loss, over all queries of the global batch."""
        scores_R = self._scores(engine, micro_batch)
        if not micro_batch.answers:
            zero = scores_R.sum() * 0.0
            return Contribution(zero, {"train/accuracy": zero, "reward/margin": zero})
        scores_QK, there_QK = by_query(scores_R, micro_batch.answers)
        ranks_QK = micro_batch.ranks_QK
        loss_Q = self._loss(scores_QK, there_QK, micro_batch)
        lead_QKK = (scores_QK[:, :, None] - scores_QK[:, None, :]).detach()
        right_Q = mean_of_comparisons((lead_QKK > 0).float(), ranks_QK, there_QK)  # a tie is wrong
        margin_Q = mean_of_comparisons(lead_QKK, ranks_QK, there_QK)
        count = micro_batch.queries_in_all
        figures = {"train/accuracy": right_Q.sum() / count, "reward/margin": margin_Q.sum() / count}
        return Contribution(loss_Q.sum() / count, figures)

    @torch.no_grad()
    def statistics(self, engine: Engine, reference: Sequence[Query]) -> dict[str, float]:
        """Mean, deviation and number of the scores of reference answers: what PPO normalises by."""
        engine.module.eval()
        lengths, ranks = tokens_of(reference), self.session.ranks
        mine = shares(range(len(reference)), lengths, self.settings, self.is_packable, ranks)
        parts = ([reference[i] for i in part] for part in mine)
        scores = torch.cat([self._all_scores(engine, part) for part in parts]).double()
        sums = torch.stack([scores.new_tensor(len(scores)), scores.sum(), scores.square().sum()])
        count, total, squares = ranks.sum(sums).tolist()
        mean = total / count
        variance = max(squares / count - mean * mean, 0.0)
        return {"mean": mean, "std": variance**0.5, "count": count}

    def _all_scores(self, engine: Engine, queries: Sequence[Query]) -> Tensor:
        """Of every answer; none on a rank whose queries ran out, which computes along."""
        scores_R = self._scores(engine, self.laid(queries, len(queries)))
        return scores_R if queries else scores_R[:0]

    def _scores(self, engine: Engine, micro_batch: MicroBatch) -> Tensor:
        """Score of each answer, read at its last token: (R,)."""
        rows = micro_batch.rows
        inputs, cell_N = model_inputs(rows.packed, self.is_packable, rows.last_R)
        del inputs["use_cache"]  # a scalar model never caches
        scores_BT: Tensor = engine(**inputs)
        return of_packed(scores_BT, cell_N)[rows.last_R]

    def _loss(self, scores_QK: Tensor, there_QK: Tensor, micro_batch: MicroBatch) -> Tensor:
        ranked_Q = ranked_loss(scores_QK, micro_batch.ranks_QK, there_QK)
        pair_Q = reward_pair_loss(scores_QK[:, 0], scores_QK[:, 1], micro_batch.margin_Q)
        loss_Q = torch.where(there_QK.sum(-1) == 2, pair_Q, ranked_Q)
        assert isinstance(self.settings, RewardStage)
        if self.settings.center_coef:
            sums_QKK = scores_QK[:, :, None] + scores_QK[:, None, :]
            centred_Q = mean_of_comparisons(sums_QKK.square(), micro_batch.ranks_QK, there_QK)
            loss_Q = loss_Q + self.settings.center_coef * centred_Q
        return loss_Q


def _statistics_of(output: Path) -> dict[str, float]:
    """What was written beside the weights that are handed on."""
    found = json.loads((output / REWARD_STATISTICS).read_text("utf-8"))
    return {"reward/score_mean": found["mean"], "reward/score_std": found["std"]}
