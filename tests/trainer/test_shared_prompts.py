"""A prompt with several answers is read once, and says what it says in a row for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rlhf_trainer import attention
from rlhf_trainer.models.language_models import without_dropout
from rlhf_trainer.models.scored_lm import ScoredLM, token_batch
from rlhf_trainer.sequences import pack_answers_to
from torch import Tensor
from trainer_pod import TINY, gradients

ASKED, OTHER = [1, 40, 41, 42, 43, 44], [1, 50, 51]
PROMPTS = [ASKED, OTHER, ASKED, OTHER, ASKED, [1]]
ANSWERS = [[60, 61, 2], [70, 2], [62, 63, 2], [71], [2], [80, 2]]


def scored(model: ScoredLM, rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs of some rows' answers, and the gradients of their squares' sum."""
    batch = token_batch([PROMPTS[i] for i in rows], [ANSWERS[i] for i in rows], "cpu")
    (logprobs,) = model(batch)
    logprobs.square().sum().backward()
    return logprobs.detach(), gradients(model)


@pytest.mark.parametrize("way", ["packed", "in parts", "padded"])
@pytest.mark.parametrize("family", TINY)
def test_answers_and_gradients_are_those_of_rows_by_themselves(
    family: str, way: str, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    if way == "in parts":
        monkeypatch.setattr(attention, "WORTH_A_PART", 1)
    plain = AutoModelForCausalLM.from_pretrained(models[family])
    model = ScoredLM(without_dropout(plain).double(), packs=way != "padded")
    together, gradients = scored(model, list(range(len(PROMPTS))))
    alone = [scored(model, [i]) for i in range(len(PROMPTS))]
    expected = {name: sum(one[1][name] for one in alone) for name in gradients}
    near = 1e-11 if family == "gpt2" else 1e-5  # the others' norms compute in fp32 always
    torch.testing.assert_close(together, torch.cat([one[0] for one in alone]), atol=near, rtol=0)
    torch.testing.assert_close(gradients, expected, atol=near, rtol=1e-5)


def test_a_prompt_is_laid_once_but_for_its_last_token() -> None:
    packed, last = pack_answers_to(PROMPTS, ANSWERS)
    assert sorted(packed.lengths) == sorted(
        len(p) + len(a) for p, a in zip(PROMPTS, ANSWERS, strict=True)
    )
    laid = packed.input_ids[0].tolist()
    assert len(laid) == sum(packed.lengths) - 2 * (len(ASKED) - 1) - (len(OTHER) - 1)
    for prompt, answer, at in zip(PROMPTS, ANSWERS, last, strict=True):
        assert laid[at : at + 1 + len(answer)] == [prompt[-1], *answer]
        assert packed.position_ids[0, at] == len(prompt) - 1


def test_rows_whose_lengths_differ_much_share_nothing() -> None:
    packed, last = pack_answers_to([OTHER] * 4, [[61], [60] * 30, [62], [63] * 28])
    assert packed.lengths == (33, 31, 4, 4)
    assert packed.shared == (0, 2, 0, 2)
    assert [part.keys.rows for group in packed.groups for part in group.parts] == [2, 2]
    assert last == [33 + 29 + 2, 2, 33 + 29 + 4, 33]


def test_a_long_prompt_is_among_the_queries_of_its_first_answer_alone() -> None:
    prompts = [[1, *range(100)]] * 5 + [OTHER]
    packed, _ = pack_answers_to(prompts, [[60] * 19] * 5 + [[61] * 90])
    sizes = [
        (part.queries.rows, part.queries.longest, part.keys.longest)
        for group in packed.groups
        for part in group.parts
    ]
    assert sizes == [(1, 120, 120), (4, 20, 120), (1, 93, 93)]
    assert sum(group.tokens for group in packed.groups) == packed.input_ids.shape[1]
    on_gpu = attention.attention_groups(packed.lengths, packed.shared, "meta")
    assert [len(group.parts) for group in on_gpu] == [1]
