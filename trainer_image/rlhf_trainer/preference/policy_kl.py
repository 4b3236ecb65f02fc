"""How far a trained policy has gone from its reference, measured on its own samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from rlhf_trainer.data.answer_rows import AnswerRow, pack_answers
from rlhf_trainer.data.encode import Answer
from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.engine import model_dtype
from rlhf_trainer.models.context import context_length
from rlhf_trainer.models.language_models import load_output, load_policy
from rlhf_trainer.models.scored_lm import ScoredLM
from rlhf_trainer.preference.answer_task import answer_logprobs
from rlhf_trainer.session import Session

PROMPTS: Final = 128
AT_ONCE: Final = 16
log = logging.getLogger(__name__)


@torch.no_grad()
def kl_to_reference(session: Session, heldout: Sequence[AnswerRow]) -> dict[str, float]:
    """eval/kl: KL(π‖π_ref) per response, in nats, of the committed output on held-out prompts.

    Mean over one response to each prompt, sampled at temperature 1, of Σ_t log π − log π_ref (k1,
    as ppo/kl). A response is at most as long as the longest held-out answer; prompts that leave no
    room for it are left out. Where whole models do not fit on a device, the metric is left out.
    """
    if not heldout:
        return {}
    measured: tuple[float, int] | None = None
    try:
        measured = _measured(session, heldout[:PROMPTS])
    except torch.OutOfMemoryError as error:
        log.warning("eval/kl needs whole models on a device, and is left out: %s", error)
    parts = session.ranks.gather_objects(measured)
    sums = [part[0] for part in parts if part is not None]
    prompts = measured[1] if measured is not None else 0
    return {"eval/kl": sum(sums) / prompts} if prompts and len(sums) == len(parts) else {}


def _measured(session: Session, heldout: Sequence[AnswerRow]) -> tuple[float, int]:
    """Σ log π − log π_ref of this rank's responses; and how many prompts the ranks share. No
    collective: a rank may run out of memory alone.
    """
    from rlhf_trainer.rollout.native import generate

    ranks, run = session.ranks, session.run
    dtype = model_dtype(session.config, ranks)
    policy: Any = load_output(run, Path(run.output) / "output", dtype).to(ranks.device)
    longest = max(len(row.answer.tokens) for row in heldout)
    rows = _with_room(heldout, longest, context_length(policy.config))
    mine = range(ranks.rank, len(rows), ranks.world_size)
    prompts = [rows[i].prompt for i in mine]
    responses = generate(
        policy,
        prompts,
        max_new_tokens=longest,
        eos_token_ids=end_token_ids(session.tokenizer),
        pad_token_id=int(session.tokenizer.pad_token_id),
        generator=torch.Generator().manual_seed(run.seed),
        row_indices=mine,
        rows_in_all=len(rows),
        rows_at_once=AT_ONCE,
    )
    sampled = [
        AnswerRow(prompt, Answer(tokens, [True] * len(tokens)))
        for prompt, tokens in zip(prompts, responses.tokens, strict=True)
    ]
    of_policy = _summed(policy, sampled, ranks.device)
    del policy
    reference: Any = load_policy(run, dtype=dtype).to(ranks.device)
    return of_policy - _summed(reference, sampled, ranks.device), len(rows)


def _with_room(rows: Sequence[AnswerRow], answer: int, limit: int | None) -> list[AnswerRow]:
    return [row for row in rows if limit is None or len(row.prompt) + answer <= limit]


def _summed(model: Any, rows: Sequence[AnswerRow], device: torch.device) -> float:
    """Σ over all rows of log π(answer | prompt)."""
    scored = ScoredLM(model, packs=False).eval()
    total = 0.0
    for start in range(0, len(rows), AT_ONCE):
        part = pack_answers(rows[start : start + AT_ONCE], device)
        total += float(answer_logprobs(scored, part).double().sum())
    return total
