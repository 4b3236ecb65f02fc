"""The DPO stage end to end: losses against independent ones, the reference, what it hands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_stages import losses
from resuming import assert_killed_run_ends_with_the_same_weights
from rlhf_trainer.checkpoints.vouched import verify
from rlhf_trainer.data.batches import global_batch
from rlhf_trainer.data.stage_rows import labelled_rows, preference_rows
from rlhf_trainer.preference import kto
from rlhf_trainer.preference.kto import KtoTask
from rlhf_trainer.stages import dpo
from trainer_pod import TINY, Pod, pair_rows

LORA = {"lora": {"rank": 4, "modulesToSave": ["lm_head"]}}


def settings(pod: Pod, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"source": pod.data("pairs", pair_rows()), "evalFraction": 0.2},
        "globalBatchSize": 8,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 5e-3,
        "maxSteps": 8,
        "epochs": 40,
        **changes,
    }


def logprob(model: Any, prompt: list[int], answer: list[int]) -> tuple[float, float]:
    """(Σ, mean) of log π of an answer's tokens, in float64, one row at a time."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logp = model(ids).logits[0].double().log_softmax(-1)
    each = logp[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]]
    return float(each.sum()), float(each.mean())


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def pair_loss(kind: str, policy: list[Any], reference: list[Any], beta: float) -> float:
    """The loss of one pair, worked from the papers' formulas."""
    h = policy[0][0] - policy[1][0] - (reference[0][0] - reference[1][0])
    (_, chosen), (_, rejected) = policy
    match kind:
        case "sigmoid":
            return -log_sigmoid(beta * h)
        case "ipo":
            return (h - 1 / (2 * beta)) ** 2
        case "simpo":
            return -log_sigmoid(beta * (chosen - rejected) - 0.5)
        case _:
            odds = [m - math.log1p(-math.exp(m)) for m in (chosen, rejected)]
            return -chosen - beta * log_sigmoid(odds[0] - odds[1])


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "simpo", "orpo"])
def test_each_loss_is_that_of_its_paper_before_and_after_training(
    kind: str, in_pod: Pod, open_session: Any
) -> None:
    from transformers import AutoModelForCausalLM

    chosen = settings(in_pod, loss=kind, beta=0.2, sftCoef=0.3, keepBest=False)
    run = in_pod.stage_run("dpo", chosen)
    session = open_session(run)
    result = dpo.train(session)
    rows = preference_rows(session.config).rows(session.tokenizer, run.paths, run.seed)
    reference = AutoModelForCausalLM.from_pretrained(in_pod.model).eval()
    trained = AutoModelForCausalLM.from_pretrained(in_pod.output(run)).eval()

    def mean_loss(model: Any, examples: list[Any]) -> float:
        total = 0.0
        for row in examples:
            found = [
                [logprob(m, row.prompt, a.tokens) for a in row.answers] for m in (model, reference)
            ]
            total += pair_loss(kind, *found, 0.2) - 0.3 * found[0][0][1]
        return total / len(examples)

    first = [rows.train[i] for i in global_batch(len(rows.train), 8, run.seed, 0)]
    assert losses(in_pod, run)[0] == pytest.approx(mean_loss(reference, first), abs=1e-4)
    assert result.metrics["eval/loss"] == pytest.approx(mean_loss(trained, rows.heldout), abs=1e-3)
    assert result.metrics["eval/loss"] < mean_loss(reference, rows.heldout)


@pytest.mark.parametrize("sft_coef", [0.0, 0.3])
def test_kto_is_that_of_its_paper_with_the_baseline_of_the_global_batch(
    sft_coef: float, in_pod: Pod, open_session: Any
) -> None:
    from transformers import AutoModelForCausalLM

    curves = []
    for size in (1, 8):
        chosen = settings(
            in_pod,
            loss="kto",
            keepBest=False,
            microBatchSize=size,
            undesirableWeight=0.5,
            sftCoef=sft_coef,
        )
        run = in_pod.stage_run("dpo", chosen, digest=f"{size:012d}")
        session = open_session(run)
        result = dpo.train(session)
        curves.append(losses(in_pod, run))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    if not sft_coef:
        assert curves[0][0] == pytest.approx(0.5 * (1 + 0.5) / 2, abs=0.13)  # σ(0), λ 1 and ½

    _, heldout = KtoTask.examples(session, session.config)
    reference = AutoModelForCausalLM.from_pretrained(in_pod.model).eval()
    trained = AutoModelForCausalLM.from_pretrained(in_pod.output(run)).eval()
    ratios = [
        [
            logprob(trained, r.prompt, r.answer.tokens)[0]
            - logprob(reference, r.prompt, r.answer.tokens)[0]
            for r in example.rows
        ]
        for example in heldout
    ]
    z0 = max(0.0, sum(mismatched for _, mismatched in ratios) / len(ratios))
    terms = [
        1.0 / (1 + math.exp(0.1 * (r - z0)))
        if example.good
        else 0.5 / (1 + math.exp(-0.1 * (r - z0)))
        for example, (r, _) in zip(heldout, ratios, strict=True)
    ]
    good = [example.rows[0] for example in heldout if example.good]
    means = [logprob(trained, row.prompt, row.answer.tokens)[1] for row in good]
    expected = sum(terms) / len(terms) - sft_coef * sum(means) / len(means)
    assert result.metrics["eval/loss"] == pytest.approx(expected, abs=1e-4)


def test_kto_mismatches_each_prompt_with_another_ones_answer(
    in_pod: Pod, open_session: Any
) -> None:
    run = in_pod.stage_run("dpo", settings(in_pod, loss="kto"))
    session = open_session(run)
    rows = labelled_rows(session.config).rows(session.tokenizer, run.paths, run.seed).train
    owners = {tuple(row.answer.tokens): set() for row in rows}
    for row in rows:
        owners[tuple(row.answer.tokens)].add(tuple(row.prompt))
    train, _ = KtoTask.examples(session, session.config)
    for row, example in zip(rows, train, strict=True):
        assert example.rows[0] == (row.prompt, row.answer)
        assert example.rows[1].prompt == row.prompt
        assert owners[tuple(example.rows[1].answer.tokens)] - {tuple(row.prompt)}
    answers = {id(row.answer) for row in rows}  # a rank holds those of all rows, and once
    again = kto._mismatched(rows, session.config.max_length)
    assert {id(example.rows[1].answer) for example in again} <= answers


@pytest.mark.parametrize("family", TINY)
def test_each_family_learns_and_its_output_loads(
    family: str, models: Mapping[str, Path], in_pod: Pod, open_session: Any
) -> None:
    from transformers import AutoModelForCausalLM

    inputs = {role: {"path": str(models[family])} for role in ("base", "policy")}
    run = in_pod.stage_run("dpo", settings(in_pod), inputs=inputs)
    result = dpo.train(open_session(run))
    assert losses(in_pod, run)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert result.metrics["eval/accuracy"] > 0.9
    assert result.metrics["eval/kl"] > 0
    assert result.metrics["eval/margin"] > 0
    AutoModelForCausalLM.from_pretrained(in_pod.output(run))
    assert result.checkpoint is not None
    verify(in_pod.output(run), result.checkpoint.digest)


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_a_stored_reference_equals_one_that_stays(
    changes: dict[str, Any], in_pod: Pod, open_session: Any
) -> None:
    curves = []
    for cache in (True, False):
        chosen = settings(in_pod, referenceCache=cache, **changes)
        run = in_pod.stage_run("dpo", chosen, digest=f"{cache:012d}")
        dpo.train(open_session(run))
        curves.append(losses(in_pod, run))
    assert curves[0][0] == pytest.approx(math.log(2), abs=1e-5)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)


def test_micro_batches_and_zero_do_not_change_the_curve(in_pod: Pod, open_session: Any) -> None:
    curves = []
    variants: list[dict[str, Any]] = [{}, {"microBatchSize": 8}, {"zero": {"stage": 2}}]
    for number, changes in enumerate(variants):
        run = in_pod.stage_run("dpo", settings(in_pod, **changes), digest=f"{number:012d}")
        dpo.train(open_session(run))
        curves.append(losses(in_pod, run))
    assert all(curve == pytest.approx(curves[0], abs=2e-4) for curve in curves[1:])


def test_a_ranked_list_counts_as_its_comparisons(in_pod: Pod, open_session: Any) -> None:
    """Three answers: the mean of three pairs, each a row of its own elsewhere."""
    lists = [
        {"query": f"{i}?", "answers": ["yes", "no", "no!!"], "ranks": [0, 1, 2]} for i in range(4)
    ]
    pairs = [
        {"query": row["query"], "chosen": row["answers"][i], "rejected": row["answers"][j]}
        for row in lists
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    firsts = []
    for number, (rows, size) in enumerate(((lists, 4), (pairs, 12))):
        source = in_pod.data(f"rows{number}", rows)
        chosen = settings(
            in_pod,
            data={"source": source, "evalFraction": 0.0},
            globalBatchSize=size,
            maxSteps=4,
            microBatchSize=12,
        )
        run = in_pod.stage_run("dpo", chosen, digest=f"{number:012d}")
        dpo.train(open_session(run))
        firsts.append(losses(in_pod, run))
    assert firsts[0] == pytest.approx(firsts[1], abs=1e-4)


def test_fixed_prompts_are_answered_with_the_trained_model(in_pod: Pod, open_session: Any) -> None:
    import json

    source = in_pod.data("prompts", [{"prompt": "what colour?"}, {"prompt": "你好"}])
    evaluation = {"prompts": {"source": source}, "maxNewTokens": 4}
    run = in_pod.stage_run("dpo", settings(in_pod, maxSteps=1), evaluation=evaluation)
    dpo.train(open_session(run))
    lines = (in_pod.directory / run.output / "samples.jsonl").read_text("utf-8").splitlines()
    assert {(row["model"], row["prompt"]) for row in map(json.loads, lines)} == {
        (model, prompt) for model in ("base", "dpo") for prompt in ("what colour?", "你好")
    }


@pytest.mark.parametrize("kind", ["sigmoid", "kto"])
def test_two_ranks_give_the_curve_of_one(kind: str, pod: Pod) -> None:
    """Three micro-batches on two ranks: one of them runs out of rows."""
    chosen = settings(
        pod, loss=kind, zero={"stage": 2}, globalBatchSize=3, microBatchSize=1, maxSteps=4
    )
    one, two = (pod.stage_run("dpo", chosen, digest=f"{n:012d}") for n in (1, 2))
    found = []
    for run, ranks in ((one, 1), (two, 2)):
        codes, log = pod.forked(run, ranks)
        assert codes == [0] * ranks, log
        found.append(pod.result()["metrics"])
    assert losses(pod, two) == pytest.approx(losses(pod, one), abs=1e-4)
    assert found[1]["eval/kl"] == pytest.approx(found[0]["eval/kl"], abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": {"rank": 4, "dropout": 0.1}}, {"loss": "kto"}],
    ids=["full", "lora", "kto"],
)
def test_a_killed_run_ends_with_the_same_weights(changes: dict[str, Any], pod: Pod) -> None:
    chosen = settings(
        pod, maxSteps=40, evalEverySteps=4, checkpointing={"everySteps": 3}, **changes
    )
    assert_killed_run_ends_with_the_same_weights(pod, "dpo", chosen, seed=str(changes))
