"""KTO's baseline z₀: whose answers it is taken from, and that it is taken in micro-batches."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from rlhf_trainer.data.answer_rows import pack_answers
from rlhf_trainer.data.encode import Answer, EncodedLabelled
from rlhf_trainer.preference import answer_task
from rlhf_trainer.preference.kto import KtoTask, _mismatched
from trainer_pod import Pod, pair_rows


def judged(prompt: int, answer: int, good: bool = True) -> EncodedLabelled:
    return EncodedLabelled(f"a:{answer}", [prompt], Answer([answer], [True]), good)


def mismatched(*rows: EncodedLabelled, further: tuple[EncodedLabelled, ...] = ()) -> list[int]:
    """The answer that each row's prompt is mismatched with."""
    return [example.rows[1].answer.tokens[0] for example in _mismatched(rows, 8, further)]


def test_a_prompt_has_the_answer_of_the_next_row_with_another_prompt() -> None:
    rows = [judged(prompt, 10 + i) for i, prompt in enumerate([1, 1, 2, 3, 3, 1])]
    assert mismatched(*rows) == [12, 12, 13, 15, 15, 12]


def test_a_held_out_row_alone_is_not_its_own_baseline() -> None:
    """It would never be right: its reward is compared with its reward."""
    training = (judged(1, 20), judged(2, 21), judged(3, 22))
    assert mismatched(judged(1, 10), further=training) == [21]
    assert mismatched(judged(1, 10), judged(1, 11), further=training) == [21, 22]
    assert mismatched(judged(1, 10), further=(judged(1, 20),)) == [20]


def test_answers_to_one_prompt_alone_are_mismatched_among_themselves() -> None:
    assert mismatched(judged(1, 10), judged(1, 11), judged(1, 12)) == [11, 12, 10]


def test_many_answers_to_one_prompt_are_mismatched_in_seconds() -> None:
    rows = [judged(1, i) for i in range(50_000)] + [judged(2, 50_000)]
    began = time.process_time()
    assert set(mismatched(*rows)) == {50_000, 0}
    assert time.process_time() - began < 10  # half an hour where each row looks for itself


def test_held_out_rows_are_laid_out_one_micro_batch_at_a_time(
    in_pod: Pod, open_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, those of a large data set would fill a GPU."""
    laid, seen = [], []

    def laying(rows: Any, device: Any) -> Any:
        laid.append(rows)
        return pack_answers(rows, device)

    class Untrained:
        module = torch.nn.Identity()

        def __call__(self, batch: Any) -> Any:
            seen.append(len(laid))
            return (torch.zeros(len(batch.targets)),)

    settings = {
        "data": {"source": in_pod.data("pairs", pair_rows()), "evalFraction": 0.5},
        "loss": "kto",
        "microBatchSize": 2,
        "maxLength": 96,
    }
    session = open_session(in_pod.stage_run("dpo", settings))
    train, heldout = KtoTask.examples(session, session.config)
    heldout = [example._replace(reference=(-1.0, 1.0)) for example in heldout]

    def reference(rows: Any, stored: Any) -> torch.Tensor:
        return torch.tensor([value for example in stored for value in example])

    monkeypatch.setattr(answer_task, "pack_answers", laying)
    task = KtoTask(session, session.config, train, heldout, 1, True, reference)
    found = task.evaluate(Untrained())
    ahead = [already - passes for passes, already in enumerate(seen)]
    assert max(ahead) == 2, "its own, and a mismatched one for the baseline that it waits for"
    assert len(seen) > 6
    assert set(found) == {"eval/loss", *KtoTask.evaluated.values()}
