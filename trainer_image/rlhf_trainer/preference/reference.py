"""The reference of DPO and its relatives: the policy as it was before training.

Its log-probs of the data's answers never change, so they are computed once, before the first step,
by the very model that is then trained: no second model is needed. With `referenceCache: false` it
stays instead: a frozen copy, or with LoRA the policy with its adapter off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import torch
from rlhf_api.stages import DPOStage
from torch import Tensor

from rlhf_trainer.data.answer_rows import AnswerRows, sums_of_rows
from rlhf_trainer.data.batches import global_batch
from rlhf_trainer.data.each import Each
from rlhf_trainer.engine import Engine, model_dtype
from rlhf_trainer.models.actor_critic import Forward, frozen
from rlhf_trainer.models.language_models import load_policy
from rlhf_trainer.models.scored_lm import ScoredLM
from rlhf_trainer.preference.answer_task import Example, answer_logprobs, answer_rows, tokens_of
from rlhf_trainer.session import Session
from rlhf_trainer.task import shares

WITH_REFERENCE: Final = ("sigmoid", "ipo", "kto")


class Referenced(Example, Protocol):
    """An example with room for its reference log-probs."""

    def _replace(self, **changes: Any) -> Any: ...


R = TypeVar("R", bound=Referenced)
Context = Callable[[], AbstractContextManager[Any]]


class Reference(NamedTuple):
    """log π_ref of rows: what was stored, or what a model that stays says."""

    model: Forward | None
    context: Context  # within it `model` is the reference
    device: torch.device

    @classmethod
    def of(cls, session: Session, config: DPOStage, trained: ScoredLM) -> Reference:
        """The reference that the settings ask for; `trained` is the policy, adapters included."""
        device = session.ranks.device
        if config.reference_cache or config.loss not in WITH_REFERENCE:
            return cls(None, nullcontext, device)
        if config.lora is not None:
            return cls(trained, trained.without_adapter, device)
        copy = load_policy(session.run, dtype=model_dtype(config, session.ranks))
        forward = frozen(ScoredLM(copy), config, session.ranks)
        return cls(forward, nullcontext, device)

    def __call__(self, rows: AnswerRows, stored: Sequence[Sequence[float]]) -> Tensor:
        """log π_ref of each row, summed over its answer: (R,), nats. Under ZeRO-3 a model that
        stays is a collective."""
        if self.model is None:
            values = [value for example in stored for value in example]
            return torch.tensor(values, device=self.device)
        with torch.no_grad(), self.context():
            return _row_logprobs(self.model, rows)


def with_reference(
    session: Session,
    config: DPOStage,
    engine: Engine,
    parts: tuple[Sequence[R], Sequence[R]],
    total_steps: int,
) -> tuple[Sequence[R], Sequence[R]]:
    """(train, held out) with stored log-probs of the model in `engine`, which nothing has trained
    yet (an adapter starts at 0), as far as they will be asked for."""
    if config.loss not in WITH_REFERENCE or not config.reference_cache:
        return parts
    train, heldout = parts
    rows, size, seed = len(train), config.global_batch_size, session.run.seed
    used = {i for step in range(total_steps) for i in global_batch(rows, size, seed, step)}
    scored = _scorer(session, config, engine)
    return scored(train, used), scored(heldout, range(len(heldout)))


def _scorer(
    session: Session, config: DPOStage, engine: Engine
) -> Callable[[Sequence[R], Iterable[int]], Sequence[R]]:
    """A function that stores log-probs in chosen examples. The ranks share the work."""

    @torch.no_grad()
    def scored(examples: Sequence[R], chosen: Iterable[int]) -> Sequence[R]:
        model = engine.module
        assert isinstance(model, ScoredLM)
        model.eval()
        found: dict[int, tuple[float, ...]] = {}
        lengths = tokens_of(examples)
        for part in shares(sorted(chosen), lengths, config, model.is_packable, session.ranks):
            rows = answer_rows(session, [examples[i] for i in part])
            values = iter(_row_logprobs(engine, rows).tolist())
            found |= {i: tuple(next(values) for _ in examples[i].rows) for i in part}
        everyones: dict[int, tuple[float, ...]] = {}
        for some in session.ranks.gather_objects(found):
            everyones |= some

        def referenced(i: int) -> R:
            found: R = examples[i]._replace(reference=everyones.get(i, ()))
            return found

        return Each(referenced, range(len(examples)))

    return scored


def _row_logprobs(model: Forward, rows: AnswerRows) -> Tensor:
    return sums_of_rows(answer_logprobs(model, rows), rows.counts)
