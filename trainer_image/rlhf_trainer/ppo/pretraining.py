"""The pretraining mix of PPO-ptx: language modelling beside the policy's updates.

Source: Ouyang et al. 2022 (InstructGPT), sec. 3.5, eq. 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rlhf_api.stages.ppo import PPOStage
from torch import Tensor

from rlhf_trainer.data.batches import global_batch
from rlhf_trainer.data.encode import Encoded
from rlhf_trainer.data.stage_rows import pretraining_rows
from rlhf_trainer.models.scored_lm import TokenBatch, token_batch
from rlhf_trainer.ppo.balance import balanced_micro_batches, tokens_at_once
from rlhf_trainer.session import Session


class PretrainingTexts:
    """Rows for language modelling; those of a step are a pure function of seed and step."""

    def __init__(self, session: Session, config: PPOStage, rows: Sequence[Encoded]) -> None:
        self.session, self.config, self.rows = session, config, rows

    @classmethod
    def load(cls, session: Session, config: PPOStage) -> PretrainingTexts | None:
        """The stage's mix, plain text or dialogues; None where it has none."""
        if config.pretraining is None:
            return None
        rows = session.rows(pretraining_rows(config), "pretraining.data")
        return cls(session, config, rows.train)

    def micro_batches(self, step: int) -> list[tuple[TokenBatch, Tensor]]:
        """This rank's micro-batches of a step, and of each token its share (N,) in the mean over
        all tokens that count in the global batch. As many rows as the minibatch has responses.
        """
        ranks, seed = self.session.ranks, self.session.run.seed
        chosen = global_batch(len(self.rows), self.config.minibatch_size, seed, step)
        rows = [self.rows[i] for i in chosen]  # a small set may bring a row twice
        lengths = [len(row.tokens) for row in rows]
        counted = max(1, sum(sum(row.loss_mask[1:]) for row in rows))
        shares = balanced_micro_batches(
            range(len(rows)), lengths, tokens_at_once(self.config), ranks.world_size
        )
        mine = shares[ranks.rank]
        return [self._micro_batch([rows[i] for i in micro], counted) for micro in mine]

    def _micro_batch(self, rows: list[Encoded], counted: int) -> tuple[TokenBatch, Tensor]:
        device = self.session.ranks.device
        batch = token_batch([r.tokens[:1] for r in rows], [r.tokens[1:] for r in rows], device)
        counts = [float(counts) for row in rows for counts in row.loss_mask[1:]]
        return batch, torch.tensor(counts, device=device) / counted
