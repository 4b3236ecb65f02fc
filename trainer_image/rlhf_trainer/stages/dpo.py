"""Direct preference optimization and its relatives: preferences without a reward model.

    sigmoid   −log σ(β·h),  h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)
    ipo       (h − 1/2β)²
    simpo     −log σ(β·(l_w − l_l) − γ),  l = log π(y|x)/|y|;  no reference
    orpo      −l_w − β·log σ(log odds_w − log odds_l);  no reference
    kto       single answers with a label: kto.py

Sources and exact forms: losses.py. Of a ranked list all comparisons count, averaged per query.
`sftCoef` adds −l_w, the chosen answer's own log-likelihood per token (RPO, Pang et al. 2024).

Shapes: M answer tokens, R answers and P comparisons of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rlhf_api.run import StageResult
from rlhf_api.stages import DPOStage
from torch import Tensor

from rlhf_trainer import evaluate
from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, sums_of_rows
from rlhf_trainer.data.batches import steps_in
from rlhf_trainer.data.each import Each
from rlhf_trainer.data.encode import EncodedPreference
from rlhf_trainer.data.stage_rows import preference_rows, write_left_out
from rlhf_trainer.engine import Engine, model_dtype, on_device
from rlhf_trainer.losses import PreferenceLoss, dpo_loss, ipo_loss, orpo_loss, simpo_loss
from rlhf_trainer.models.language_models import load_policy
from rlhf_trainer.models.lora import add_lora
from rlhf_trainer.models.scored_lm import ScoredLM
from rlhf_trainer.preference import kto
from rlhf_trainer.preference.answer_task import AnswerTask, answer_logprobs, answer_rows
from rlhf_trainer.preference.policy_kl import kl_to_reference
from rlhf_trainer.preference.reference import Reference, with_reference
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import commit, done, fit
from rlhf_trainer.task import Contribution

FIGURES = ("train/accuracy", "dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward")
"""Share of comparisons with the better answer's implicit reward above the other's (a tie is wrong);
mean implicit rewards β·log(π/π_ref) and their difference."""


def train(session: Session) -> StageResult:
    """One attempt of the stage, on one rank."""
    config, run, ranks = session.config, session.run, session.ranks
    assert isinstance(config, DPOStage)
    task_type: Any = kto.KtoTask if config.loss == "kto" else PairTask
    learnt, heldout = task_type.examples(session, config)
    total = steps_in(len(learnt), config.global_batch_size, config.epochs, config.max_steps)

    lm: Any = on_device(load_policy(run, dtype=model_dtype(config, ranks)), config, ranks)
    before = evaluate.answer_as_base(session, lm)
    model = ScoredLM(lm if config.lora is None else add_lora(lm, config.lora))
    reference = Reference.of(session, config, model)
    engine = Engine.create(model, config, ranks=ranks, total_steps=total)
    learnt, heldout = with_reference(session, config, engine, (learnt, heldout), total)
    task = task_type(session, config, learnt, heldout, total, model.is_packable, reference)

    def write(directory: Path) -> None:
        session.save_policy(engine, model.lm, directory)

    fitted = fit(session, engine, task, write)
    checkpoint, metrics = commit(session, fitted, write)
    metrics |= before | kl_to_reference(session, [example.rows[0] for example in heldout])
    metrics |= evaluate.answer_as(session, run.stage)
    return done(session, fitted.step, checkpoint, metrics)


class Compared(NamedTuple):
    """A prompt with its answers, best first."""

    id: str
    rows: tuple[AnswerRow, ...]
    ranks: tuple[int, ...]
    reference: tuple[float, ...] = ()  # log π_ref of each answer, where it is stored

    @classmethod
    def of(cls, row: EncodedPreference) -> Compared:
        """From a row of the data set."""
        rows = tuple(AnswerRow(row.prompt, answer) for answer in row.answers)
        return cls(row.id, rows, row.ranks)


class MicroBatch(NamedTuple):
    """Answers, and which are compared."""

    rows: AnswerRows
    better_P: Tensor  # index of a row
    worse_P: Tensor
    share_P: Tensor  # 1 / (comparisons of the query · queries of the global batch)
    stored: tuple[tuple[float, ...], ...]


class PairTask(AnswerTask[Compared, MicroBatch, int]):
    """What DPO tells the loop of supervised stages."""

    evaluated = {"train/accuracy": "eval/accuracy", "dpo/margin": "eval/margin"}  # noqa: RUF012

    def __init__(self, *common: Any) -> None:
        *rest, self._reference = common
        super().__init__(*rest)

    @staticmethod
    def examples(
        session: Session, config: DPOStage
    ) -> tuple[Sequence[Compared], Sequence[Compared]]:
        """Training and held-out examples."""
        rows = session.rows(preference_rows(config))
        if session.ranks.is_main:
            write_left_out(Path(session.run.output), rows)
        return Each(Compared.of, rows.train), Each(Compared.of, rows.heldout)

    def of_whole(self, whole: Sequence[Compared], parts: Sequence[Sequence[Compared]]) -> int:
        """Queries."""
        return len(whole)

    def laid(self, examples: Sequence[Compared], of_whole: int) -> MicroBatch:
        """Answers laid end to end, with the indices of all comparisons."""
        better: list[int] = []
        worse: list[int] = []
        share: list[float] = []
        first = 0
        for example in examples:
            ranks = example.ranks
            pairs = [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
            better += [first + i for i, _ in pairs]
            worse += [first + j for _, j in pairs]
            share += [1 / (len(pairs) * of_whole)] * len(pairs)
            first += len(ranks)
        device = self.session.ranks.device
        return MicroBatch(
            answer_rows(self.session, examples),
            torch.tensor(better, dtype=torch.long, device=device),
            torch.tensor(worse, dtype=torch.long, device=device),
            torch.tensor(share, device=device),
            tuple(example.reference for example in examples),
        )

    def contribution(self, engine: Engine, micro_batch: MicroBatch) -> Contribution:
        """Σ over comparisons of the loss, each with its share of the global batch."""
        rows, share_P = micro_batch.rows, micro_batch.share_P
        logprobs_M = answer_logprobs(engine, rows)
        reference_R = self._reference(rows, micro_batch.stored)  # a collective: on all ranks
        if not len(share_P):
            zero = logprobs_M.sum()
            return Contribution(zero, dict.fromkeys(FIGURES, zero))
        sums_R = sums_of_rows(logprobs_M, rows.counts)
        means_R = sums_R / sums_R.new_tensor(rows.counts)
        found = self._loss(sums_R, means_R, reference_R, micro_batch)
        margin_P = found.chosen_rewards - found.rejected_rewards
        parts = ((margin_P > 0).float(), margin_P, found.chosen_rewards, found.rejected_rewards)
        figures = {name: (x * share_P).sum() for name, x in zip(FIGURES, parts, strict=True)}
        return Contribution((found.loss * share_P).sum(), figures)

    def _loss(
        self, sums_R: Tensor, means_R: Tensor, reference_R: Tensor, micro_batch: MicroBatch
    ) -> PreferenceLoss:
        config = self.settings
        assert isinstance(config, DPOStage)
        better_P, worse_P = micro_batch.better_P, micro_batch.worse_P
        means = means_R[better_P], means_R[worse_P]
        match config.loss:
            case "simpo":
                found = simpo_loss(*means, config.beta, config.simpo_gamma)
            case "orpo":
                found = orpo_loss(*means, config.beta)
            case _:
                sums = sums_R[better_P], sums_R[worse_P]
                of_reference = reference_R[better_P], reference_R[worse_P]
                if config.loss == "ipo":
                    found = ipo_loss(*sums, *of_reference, config.beta)
                else:
                    smoothing = config.label_smoothing
                    found = dpo_loss(*sums, *of_reference, config.beta, smoothing)
        if not config.sft_coef:
            return found
        return found._replace(loss=found.loss - config.sft_coef * means[0])
