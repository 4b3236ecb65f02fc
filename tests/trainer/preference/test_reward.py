"""The reward stage end to end: its loss against an independent one, what it learns and hands on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_stages import losses
from resuming import assert_killed_run_ends_with_the_same_weights, digest
from rlhf_api.data import DataSource
from rlhf_api.stages import SFTStage
from rlhf_trainer.checkpoints.vouched import verify
from rlhf_trainer.data.stage_rows import preference_rows
from rlhf_trainer.data.stage_rows import sft_rows as sft_rows_of
from rlhf_trainer.stages import reward
from trainer_pod import TINY, Pod, pair_rows, sft_rows


def settings(pod: Pod, rows: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    source = pod.data("pairs", pair_rows() if rows is None else rows)
    return {
        "data": {"source": source, "evalFraction": 0.2},
        "globalBatchSize": 8,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 5e-3,
        "maxSteps": 8,
        "epochs": 40,
        **changes,
    }


def ranked_rows(count: int = 12) -> list[dict[str, Any]]:
    """Lists of 2 to 4 answers, ties among them."""
    answers = ["yes", "yes, it is", "no", "no, it is not at all so"]
    return [
        {
            "query": f"{i}?",
            "answers": [answers[(i + k) % 4] for k in range(2 + i % 3)],
            "ranks": [0, 1, 1, 2][: 2 + i % 3],
        }
        for i in range(count)
    ]


def by_hand(model: Any, row: Any, center: float = 0.0) -> tuple[float, float]:
    """(loss, share of comparisons that are right) of one query, answer by answer, in float64."""
    scores = []
    for answer in row.answers:
        ids = torch.tensor([row.prompt + answer.tokens])
        with torch.no_grad():
            hidden = model.base_model(ids).last_hidden_state
            scores.append(model.score(hidden)[0, -1].item())
    pairs = [
        (scores[i], scores[j])
        for i in range(len(scores))
        for j in range(len(scores))
        if row.ranks[i] < row.ranks[j]
    ]
    terms = [math.log1p(math.exp(-(a - b - row.margin))) + center * (a + b) ** 2 for a, b in pairs]
    return sum(terms) / len(pairs), sum(a > b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("family", TINY)
def test_each_family_learns_to_rank_and_loads_as_a_classifier(
    family: str, models: Mapping[str, Path], in_pod: Pod, open_session: Any
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = {role: {"path": str(models[family])} for role in ("base", "policy")}
    run = in_pod.stage_run("reward", settings(in_pod, maxSteps=12), inputs=inputs)
    session = open_session(run)
    result = reward.train(session)
    assert result.exit_code == 0
    assert result.metrics["eval/accuracy"] > 0.9
    assert losses(in_pod, run)[-1] < 0.5 * losses(in_pod, run)[0]

    output = in_pod.output(run)
    model = AutoModelForSequenceClassification.from_pretrained(output).eval()
    assert model.config.num_labels == 1
    rows = preference_rows(session.config).rows(session.tokenizer, run.paths, run.seed).heldout
    found = [by_hand(model, row) for row in rows]
    expected = sum(loss for loss, _ in found) / len(found)
    assert result.metrics["eval/loss"] == pytest.approx(expected, abs=1e-5)
    row = rows[0]
    ids = torch.tensor([row.prompt + row.answers[0].tokens])
    with torch.no_grad():
        whole = model(ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        own = model.score(model.base_model(ids).last_hidden_state)[0, -1, 0]
    assert float(whole) == pytest.approx(float(own), abs=1e-5)
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert result.checkpoint is not None
    verify(output, result.checkpoint.digest)


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_ranked_lists_count_all_comparisons_of_a_query_in_one_step(
    center: float, in_pod: Pod, open_session: Any
) -> None:
    """The first step's loss is that of the untouched model, by hand, whatever the micro-batches."""
    from rlhf_trainer.data.batches import global_batch
    from rlhf_trainer.models.language_models import load_policy
    from rlhf_trainer.models.scalar_models import scalar_from_trunk

    curves = []
    for size in (1, 2, 8):
        chosen = settings(in_pod, ranked_rows(), centerCoef=center, microBatchSize=size, maxSteps=3)
        run = in_pod.stage_run("reward", chosen, digest=f"{size:012d}")
        session = open_session(run)
        rows = preference_rows(session.config).rows(session.tokenizer, run.paths, run.seed).train
        reward.train(session)
        curves.append(losses(in_pod, run))
    model = scalar_from_trunk(load_policy(run).base_model, seed=run.seed)
    model.base_model = model.trunk
    first = [rows[i] for i in global_batch(len(rows), 8, run.seed, 0)]
    expected = sum(by_hand(model, row, center)[0] for row in first) / len(first)
    assert curves[0][0] == pytest.approx(expected, abs=1e-5)
    assert all(curve == pytest.approx(curves[0], abs=1e-4) for curve in curves)


def test_margins_of_pairs_are_in_the_loss(in_pod: Pod, open_session: Any) -> None:
    firsts = []
    for margin in (0.0, 3.0):
        rows = [row | {"margin": margin} for row in pair_rows()]
        name = f"{int(margin):012d}"
        run = in_pod.stage_run("reward", settings(in_pod, rows, maxSteps=1), digest=name)
        reward.train(open_session(run))
        firsts.append(losses(in_pod, run)[0])
    assert firsts[1] > firsts[0] + 1.5


def test_statistics_are_those_of_the_training_answers(in_pod: Pod, open_session: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    for which in ("all", "chosen"):
        chosen = settings(in_pod, normaliseOn=which)
        run = in_pod.stage_run("reward", chosen, digest=f"{len(which):012d}")
        session = open_session(run)
        result = reward.train(session)
        model = AutoModelForSequenceClassification.from_pretrained(in_pod.output(run)).eval()
        scores = []
        rows = preference_rows(session.config).rows(session.tokenizer, run.paths, run.seed)
        for row in rows.train:
            for answer in row.answers if which == "all" else row.answers[:1]:
                ids = torch.tensor([row.prompt + answer.tokens])
                with torch.no_grad():
                    scores.append(model.score(model.base_model(ids).last_hidden_state)[0, -1, 0])
        stored = json.loads((in_pod.output(run) / "reward_statistics.json").read_text())
        whole = torch.stack(scores).double()
        assert stored["count"] == len(scores)
        assert stored["mean"] == pytest.approx(float(whole.mean()), abs=1e-5)
        assert stored["std"] == pytest.approx(float(whole.std(correction=0)), abs=1e-5)
        assert result.metrics["reward/score_mean"] == stored["mean"]
        assert result.metrics["reward/score_std"] == stored["std"]


def turns(*contents: str) -> list[dict[str, Any]]:
    """A dialogue that begins with the user."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def test_statistics_are_those_of_the_last_answers_of_the_sft_data(
    in_pod: Pod, open_session: Any
) -> None:
    """Whole dialogues that are learnt and not held out, in float64."""
    from transformers import AutoModelForSequenceClassification

    dialogues = [turns(row["prompt"], row["answer"]) for row in sft_rows(12)]
    dialogues += [turns("1?", "one", "2?", "two it is"), turns("3?", "three", "四?", "四")]
    unlearnt, too_long = turns("5?", "five", "6?", "no"), turns("7?", "seven" * 60)
    unlearnt[-1]["weight"] = 0
    source = in_pod.data("sft", [{"messages": each} for each in [*dialogues, unlearnt, too_long]])
    data = {"source": source, "evalFraction": 0.2, "overlong": "truncate"}
    run = in_pod.stage_run(
        "reward", settings(in_pod), demonstrations={"data": data, "maxLength": 96}
    )
    session = open_session(run)
    reward.train(session)

    model = AutoModelForSequenceClassification.from_pretrained(in_pod.output(run)).double().eval()
    kept = sft_rows_of(SFTStage(data=DataSource(**data)))
    kept = kept.rows(session.tokenizer, run.paths, run.seed)
    lines = [int(row.id.rpartition(":")[2]) for row in kept.train]
    assert len(lines) < len(dialogues) + 2
    scores = []
    for line in lines:
        if line <= len(dialogues):
            text = session.tokenizer.apply_chat_template(dialogues[line - 1], tokenize=False)
            ids = session.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                scores.append(model.score(model.base_model(ids).last_hidden_state)[0, -1, 0])
    stored = json.loads((in_pod.output(run) / "reward_statistics.json").read_text())
    whole = torch.stack(scores)
    assert stored["count"] == len(scores)
    assert stored["mean"] == pytest.approx(float(whole.mean()), abs=1e-5)
    assert stored["std"] == pytest.approx(float(whole.std(correction=0)), abs=1e-5)


def test_no_more_demonstrations_are_scored_than_are_needed(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which ones, the seed says."""
    monkeypatch.setattr("rlhf_trainer.data.stage_rows.REFERENCE_QUERIES", 5)
    data = {"source": in_pod.data("sft", sft_rows(40)), "evalFraction": 0}
    drawn = []
    for seed in (7, 7, 8):
        run = in_pod.stage_run(
            "reward", settings(in_pod), demonstrations={"data": data, "maxLength": 96}, seed=seed
        )
        queries = reward.reference_queries(open_session(run), run.config, [])
        drawn.append([query.id for query in queries])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


def test_lora_is_merged_and_random_weights_come_from_the_seed(
    in_pod: Pod, open_session: Any
) -> None:
    from safetensors.torch import load_file

    lora = settings(in_pod, lora={"rank": 4, "targetModules": ["q_proj"]})
    run = in_pod.stage_run("reward", lora)
    reward.train(open_session(run))
    before = load_file(in_pod.model / "model.safetensors")
    after = load_file(in_pod.output(run) / "model.safetensors")
    changed = {name for name in before if name in after and not before[name].equal(after[name])}
    assert changed
    assert all("q_proj" in name for name in changed)
    assert "score.weight" in after

    path = str(in_pod.model)
    random_start = {"base": {"path": path}, "policy": {"path": path, "init": "random"}}
    digests = set()
    for number in (2, 3):
        fresh = in_pod.stage_run(
            "reward", settings(in_pod), inputs=random_start, digest=f"{number:012d}"
        )
        reward.train(open_session(fresh))
        digests.add(digest(in_pod, fresh))
    assert len(digests) == 1


def test_two_ranks_give_the_curve_of_one(pod: Pod) -> None:
    """Three micro-batches on two ranks: one of them runs out of rows, and of demonstrations."""
    chosen = settings(pod, zero={"stage": 2}, globalBatchSize=3, microBatchSize=1, maxSteps=4)
    data = {"source": pod.data("sft", sft_rows(5)), "evalFraction": 0}
    scored = {"data": data, "maxLength": 96}
    one, two = (
        pod.stage_run("reward", chosen, digest=f"{n:012d}", demonstrations=scored) for n in (1, 2)
    )
    for run, ranks in ((one, 1), (two, 2)):
        codes, log = pod.forked(run, ranks)
        assert codes == [0] * ranks, log
    assert losses(pod, two) == pytest.approx(losses(pod, one), abs=1e-4)
    statistics = [
        json.loads((pod.output(r) / "reward_statistics.json").read_text()) for r in (one, two)
    ]
    assert statistics[1] == pytest.approx(statistics[0], abs=1e-3)
    assert statistics[0]["count"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"lora": {"rank": 4, "dropout": 0.1}}], ids=["full", "lora"]
)
def test_a_killed_run_ends_with_the_same_weights(changes: dict[str, Any], pod: Pod) -> None:
    chosen = settings(
        pod, maxSteps=40, evalEverySteps=4, checkpointing={"everySteps": 3}, **changes
    )
    assert_killed_run_ends_with_the_same_weights(pod, "reward", chosen, seed=str(changes))
