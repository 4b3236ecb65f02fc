"""The evaluation's prompts, answered by a model: samples.jsonl, and the user's judge.

So that models can be compared by eye and by figure, each policy stage answers the same prompts in
the same order with what it hands on, and the base model before it is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rlhf_api.job import Evaluation

from rlhf_trainer.data.encode import EncodedPrompt
from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.data.stage_rows import UNLIMITED, evaluation_prompts
from rlhf_trainer.engine import model_dtype
from rlhf_trainer.errors import BadData, ConfigurationError
from rlhf_trainer.models.context import context_length
from rlhf_trainer.models.language_models import generation_ends, input_of, load_output
from rlhf_trainer.session import Session
from rlhf_trainer.user_code import call_function, load_function

SAMPLES: Final = "samples.jsonl"
ROWS_AT_ONCE: Final = 64
BASE: Final = "base"


class Sample(NamedTuple):
    """One line of samples.jsonl."""

    model: str
    id: str
    prompt: str
    answer: str
    score: float | None
    finished: bool  # ended by itself, not at maxNewTokens


def answer_as_base(session: Session, model: Any) -> dict[str, float]:
    """If the policy of this stage is the base model itself, answer as "base" before training."""
    run = session.run
    if run.evaluation is None:
        return {}
    if run.evaluation.score is not None:  # a judge that is not there is found before training
        load_function(run.evaluation.score, run.paths)
    if input_of(run, "policy").path != input_of(run, "base").path:
        return {}
    metrics = answer(session, model.to(session.ranks.device), BASE)
    return {"eval/base_score": metrics["eval/score"]} if "eval/score" in metrics else {}


def answer_as(session: Session, name: str) -> dict[str, float]:
    """Answer with the committed output: what is judged is what is handed on."""
    if session.run.evaluation is None:
        return {}
    dtype = model_dtype(session.config, session.ranks)
    model = load_output(session.run, Path(session.run.output) / "output", dtype)
    return answer(session, model.to(session.ranks.device), name)


def answer(session: Session, model: Any, name: str) -> dict[str, float]:
    """Answer all prompts, write samples.jsonl, judge. Ranks share the prompts; every rank calls.

    `model` is whole on every rank. Returns eval/score where there is a judge.
    """
    evaluation = session.run.evaluation
    if evaluation is None:
        return {}
    prompts = _prompts(session, evaluation, model)
    answers, finished = _answers(session, evaluation, model, prompts)
    scores = session.ranks.on_main(lambda: _judged(session, evaluation, prompts, answers))
    if session.ranks.is_main:
        parts = zip(prompts, answers, scores, finished, strict=True)
        _replace(session, [Sample(name, p.id, p.text, a, s, f) for p, a, s, f in parts])
    known = [score for score in scores if score is not None]
    return {"eval/score": sum(known) / len(known)} if known else {}


def _prompts(session: Session, evaluation: Evaluation, model: Any) -> list[EncodedPrompt]:
    """The first prompts of the source, cut to leave room for an answer."""
    longest = context_length(model.config) or UNLIMITED
    room = max(1, longest - evaluation.max_new_tokens)
    prompts = evaluation_prompts(evaluation, session.tokenizer, session.run.paths, room)
    if not prompts:
        raise BadData(f"evaluation.prompts: {evaluation.prompts.source} holds no prompt")
    return prompts


def _answers(
    session: Session, evaluation: Evaluation, model: Any, prompts: Sequence[EncodedPrompt]
) -> tuple[list[str], list[bool]]:
    """Text of each answer, and whether it ended by itself; the same on every rank."""
    from rlhf_trainer.rollout.native import generate
    from rlhf_trainer.rollout.stop_strings import stop_strings

    tokenizer, ranks = session.tokenizer, session.ranks
    mine = range(ranks.rank, len(prompts), ranks.world_size)
    responses = generate(
        model,
        [prompts[i].tokens for i in mine],
        max_new_tokens=evaluation.max_new_tokens,
        temperature=evaluation.temperature,
        eos_token_ids=end_tokens(tokenizer, model),
        pad_token_id=int(tokenizer.pad_token_id),
        generator=torch.Generator().manual_seed(session.run.seed),
        row_indices=mine,
        rows_in_all=len(prompts),
        rows_at_once=ROWS_AT_ONCE,
        stop=stop_strings(tokenizer, evaluation.stop),
    )
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in responses.tokens]
    found: dict[int, tuple[str, bool]] = {}
    pairs = zip(texts, responses.finished, strict=True)
    for part in ranks.gather_objects(dict(zip(mine, pairs, strict=True))):
        found |= part
    ordered = [found[i] for i in range(len(prompts))]
    return [text for text, _ in ordered], [ended for _, ended in ordered]


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Tokens that end an answer: those that the model learnt to end with, and those of its
    generation config."""
    return sorted({*end_token_ids(tokenizer), *generation_ends(model)})


def _judged(
    session: Session,
    evaluation: Evaluation,
    prompts: Sequence[EncodedPrompt],
    answers: list[str],
) -> list[float | None]:
    if evaluation.score is None:
        return [None] * len(answers)
    judge = load_function(evaluation.score, session.run.paths)
    texts, rows = [p.text for p in prompts], [p.asked.row for p in prompts]
    scores = call_function(evaluation.score, judge, texts, answers, rows)
    for score, text in zip(scores, answers, strict=True):
        if not math.isfinite(score):
            told = f"gave {score} for the answer {text[:80]!r}"
            raise ConfigurationError(f"evaluation.score: {evaluation.score.entrypoint} {told}")
    return list(scores)


def _replace(session: Session, samples: Sequence[Sample]) -> None:
    """Write them in place of earlier ones of the same model: a roll-back answers twice."""
    file = Path(session.run.output) / SAMPLES
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = [line for line in lines if json.loads(line)["model"] != samples[0].model]
    new = [json.dumps(sample._asdict(), ensure_ascii=False) for sample in samples]
    file.write_text("".join(line + "\n" for line in kept + new), encoding="utf-8")
