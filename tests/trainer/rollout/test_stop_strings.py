"""Texts at which a response ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_trainer.chat import Chat
from rlhf_trainer.models.language_models import load_directory
from rlhf_trainer.rollout.native import generate
from rlhf_trainer.rollout.stop_strings import StopStrings, stop_strings

PROMPTS = [[1, 40, 50, 60, 70], [1, 41, 51], [1, *range(40, 140, 10)], [1, 99]]
NEW = 24


@pytest.mark.parametrize(
    ("text", "said", "kept"),
    [
        ("</a>", "is it</a> or", "is it</a>"),
        ("you", "say: is yellow you", "say: is yellow you"),
        ("ye", "is yellow or", "is yellow"),  # one token has it, and more
        ("黄", "是黄色", "是黄"),  # three tokens make up the character
        ("<|user|>", "no<|user|>yes", "no<|user|>"),
    ],
)
def test_the_token_that_completes_a_text_is_the_last(
    text: str, said: str, kept: str, tokenizer: Any
) -> None:
    tokens = tokenizer(said, add_special_tokens=False)["input_ids"]
    stop = StopStrings(tokenizer, ["never", text])
    found = [end for end in range(1, len(tokens) + 1) if stop.complete(tokens[:end])]
    assert len(found) == 1  # once complete, it is not again
    assert tokenizer.decode(tokens[: found[0]]) == kept


def test_no_texts_are_no_stop(tokenizer: Any) -> None:
    assert stop_strings(tokenizer, None) is None


@pytest.mark.parametrize(("least", "lengths"), [(1, [NEW, 2, 16, NEW]), (9, [NEW, NEW, 16, NEW])])
def test_a_row_ends_with_its_text_and_the_others_go_on(
    least: int, lengths: list[int], models: Mapping[str, Path], tokenizer: Any
) -> None:
    model = load_directory(models["llama"])
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_ids": [], "pad_token_id": 0}

    def answers(**more: Any) -> Any:
        generator = torch.Generator().manual_seed(5)
        return generate(model, PROMPTS, generator=generator, **options, **more)

    free = answers().tokens
    assert tokenizer.decode(free[1])[:4] == "urlS"
    assert tokenizer.decode(free[2][14:16]) == "on."
    found = answers(stop=StopStrings(tokenizer, ["on.", "rl"]), min_new_tokens=least)
    assert found.tokens == [row[:length] for row, length in zip(free, lengths, strict=True)]
    assert found.finished == [length < NEW for length in lengths]


def test_an_answer_in_a_chat_ends_as_well(models: Mapping[str, Path]) -> None:
    free = "".join(Chat(models["llama"], max_new_tokens=12).answer("hello"))
    text = free[3:5]
    said = "".join(Chat(models["llama"], max_new_tokens=12, stop=[text]).answer("hello"))
    assert said == free[: free.index(text) + 2] != free
