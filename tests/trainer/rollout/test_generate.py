"""The native sampler against the model itself, read from the start for each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from device_waits import Waits
from rlhf_trainer.chat import Chat
from rlhf_trainer.rollout import native
from rlhf_trainer.rollout.native import generate
from rlhf_trainer.sequences import enable_packing
from trainer_pod import TINY, write_model

TINY_STATE = {"hidden_size": 32, "num_hidden_layers": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": TINY["llama"],
    "mistral": {**TINY["mistral"], "sliding_window": 6},
    "mamba": {**TINY_STATE, "state_size": 4},
    "mamba2": {**TINY_STATE, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "bamba": {**TINY["mistral"], "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "rwkv": {**TINY_STATE, "attention_hidden_size": 32},
    "lfm2": {**TINY["llama"], "layer_types": ["conv", "full_attention"]},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}
ASKED_TWICE = [1, *range(42, 102, 10)]
PROMPTS = [ASKED_TWICE, [1, *range(40, 140, 10)], [1, 41, 51], ASKED_TWICE]
NEW = 12


def one_by_one(model: Any, prompt: list[int], ends: list[int]) -> list[int]:
    """The likeliest tokens, each from a whole row without a cache."""
    row = list(prompt)
    while len(row) < len(prompt) + NEW and row[-1] not in ends:
        with torch.no_grad():
            logits_TV = model(torch.tensor([row]), use_cache=False).logits[0]
        row.append(int(logits_TV[-1].argmax()))
    return row[len(prompt) :]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose attention and states tell: those of a fresh model hardly reach its logits."""
    from transformers import AutoModelForCausalLM

    written = {}
    for family, settings in FAMILIES.items():
        path = write_model(tmp_path_factory.mktemp(family), family, **settings)
        model = AutoModelForCausalLM.from_pretrained(path)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.endswith(("A_log", "conv1d.weight")):
                parameter.data.mul_(6)
        model.save_pretrained(path)
        written[family] = path
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_answers_are_those_of_the_model_without_a_cache(
    family: str, zoo: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo[family]).eval()
    free = [one_by_one(model, prompt, []) for prompt in PROMPTS]
    ends = [free[2][4]]  # at least one row is done before the others
    found = generate(
        model, PROMPTS, max_new_tokens=NEW, temperature=0, eos_token_ids=ends, pad_token_id=0
    )
    assert found.tokens == [one_by_one(model, prompt, ends) for prompt in PROMPTS]
    assert found.finished[2]


READS_WHOLE_ROWS = ("rwkv", "openai-gpt")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_is_read_once_where_transformers_has_a_cache(
    family: str, zoo: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo[family]).eval()
    options = {"max_new_tokens": NEW, "temperature": 0, "eos_token_ids": [], "pad_token_id": 0}
    generate(model, PROMPTS, **options)  # finds out what serves this model
    cells = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, ids: cells.append(ids[0].numel()))
    generate(model, PROMPTS, **options)
    once = len(PROMPTS) * max(map(len, PROMPTS)) + len(PROMPTS) * (NEW - 1)
    assert (sum(cells) > 3 * once) == (family in READS_WHOLE_ROWS)
    assert family in READS_WHOLE_ROWS or sum(cells) <= once


@pytest.mark.parametrize("family", ["mamba", "bamba"])
def test_a_cache_in_which_pads_leave_a_trace_is_not_used(
    family: str, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from transformers import AutoModelForCausalLM

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    monkeypatch.setattr(module, "apply_mask_to_padding_states", lambda states, mask: states)
    model = AutoModelForCausalLM.from_pretrained(zoo[family]).eval()
    assert native._kind_of_batch(model) is native._WholeRows


@pytest.mark.parametrize("family", ["mamba", "openai-gpt"])
def test_one_can_talk_to_a_model_whose_cache_is_unusual(family: str, zoo: dict[str, Path]) -> None:
    chat = Chat(zoo[family], max_new_tokens=NEW)
    said = "".join(chat.answer("hello"))
    prompt = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    tokens = one_by_one(chat.model, prompt, [2])
    whole = chat.tokenizer.decode(tokens, skip_special_tokens=True)
    assert said == whole.rstrip("\ufffd")


def test_a_prompt_is_read_once_for_all_of_its_samples(zoo: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo["llama"])
    assert enable_packing(model)
    prompts = [ASKED_TWICE, PROMPTS[1], ASKED_TWICE, ASKED_TWICE]
    options = {"eos_token_ids": [], "pad_token_id": 0, "rows_in_all": 4}
    cells = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, ids: cells.append(ids[0].numel()))

    def answers(rows: list[int], tokens: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(4)
        asked = [prompts[row] for row in rows]
        return generate(
            model,
            asked,
            max_new_tokens=tokens,
            generator=generator,
            row_indices=rows,
            **options,
        ).tokens

    together = answers([0, 1, 2, 3], NEW)
    assert together[0] != together[2], "samples with the same random numbers"
    assert together == [answers([row], NEW)[0] for row in range(4)]
    cells.clear()
    answers([0, 1, 2, 3], 1)
    assert cells == [len(ASKED_TWICE) + len(PROMPTS[1])]


def test_a_token_that_ends_no_row_waits_for_a_gpu_once(zoo: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo["llama"])
    assert enable_packing(model)
    found = []
    for tokens in (4, 7):
        with Waits() as waits:
            generate(
                model,
                PROMPTS,
                max_new_tokens=tokens,
                eos_token_ids=[],
                pad_token_id=0,
                generator=torch.Generator().manual_seed(0),
            )
        found.append(waits.found)
    assert found[1] - found[0] == {"tolist": 3}
