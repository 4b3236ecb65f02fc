"""Who answers a rollout's prompts: the actor itself, or an engine with a copy of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from rlhf_api.stages.ppo import PPOStage

from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.engine import Engine
from rlhf_trainer.rollout.native import generate
from rlhf_trainer.rollout.sampling import Responses
from rlhf_trainer.rollout.stop_strings import stop_strings
from rlhf_trainer.session import Session

ROWS_AT_ONCE: Final = 16
"""Micro-batches of rows that are answered side by side: a cache is small beside activations."""


class RolloutEngine(Protocol):
    """Samples responses under the actor's weights as they are when it is asked."""

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        rows_in_all: int,
        rollout: int,
        draw: int = 0,
    ) -> Responses:
        """A response to each prompt of this rank, which are these of `rows_in_all` global rows.

        Every rank calls it, if with no prompts. A row's random numbers are a function of the job's
        seed, the rollout, its round of sampling (`draw`) and the row: they do not depend on which
        rank answers it.
        """
        ...


class Native:
    """The actor answers, whole on every rank."""

    def __init__(self, session: Session, config: PPOStage, actor: Engine, lm: Any) -> None:
        self.session, self.config, self.actor, self.lm = session, config, actor, lm

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        rows_in_all: int,
        rollout: int,
        draw: int = 0,
    ) -> Responses:
        """See `RolloutEngine`."""
        settings, tokenizer = self.config.rollout, self.session.tokenizer
        with self.actor.gathered():
            return generate(
                self.lm,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                min_new_tokens=settings.min_new_tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                eos_token_ids=end_token_ids(tokenizer),
                pad_token_id=int(tokenizer.pad_token_id or 0),
                generator=rollout_generator(self.session.run.seed, rollout, draw),
                row_indices=rows,
                rows_in_all=rows_in_all,
                rows_at_once=ROWS_AT_ONCE * self.config.micro_batch_size,
                stop=stop_strings(tokenizer, settings.stop),
            )


def rollout_engine(session: Session, config: PPOStage, actor: Engine, lm: Any) -> RolloutEngine:
    """The engine that `rollout.engine` names. ConfigurationError where it cannot run the model."""
    if config.rollout.engine == "native":
        return Native(session, config, actor, lm)
    from rlhf_trainer.rollout.vllm import VLLM

    return VLLM(session, config, lm)


def rollout_generator(seed: int, rollout: int, draw: int = 0) -> torch.Generator:
    """The source of a round's random numbers: a pure function of seed, rollout and round."""
    state = np.random.SeedSequence([seed, rollout, draw]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
