"""The last layer goes on with wanted tokens alone: what is wanted of it stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import adapted
from rlhf_api.stages.common import LoRA
from rlhf_trainer.models.language_models import without_dropout
from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.sequences import enable_packing, model_inputs, pack_rows
from torch import Tensor
from trainer_pod import TINY, gradients

ROWS = [[1, 40, 41, 42, 43], [1, 50, 51], [1, 60, 61, 62]]
WANTED = torch.tensor([3, 4, 7, 11])


def language_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return without_dropout(AutoModelForCausalLM.from_pretrained(path)).double()


def scores(model: Any, positions: Tensor, told: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at the positions, and the gradients of their squares' sum."""
    inputs, _ = model_inputs(pack_rows(ROWS), True, told)
    logits = model(**inputs).logits[0, positions]
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


def tokens_of_the_last_mlp(model: Any) -> list[int]:
    """How many tokens each call of the last layer's MLP gets, from now on."""
    seen: list[int] = []
    mlps = [m for n, m in plain_model(model).named_modules() if n.endswith(".mlp")]
    inner = next(m for m in mlps[-1].modules() if not list(m.children()))
    inner.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", TINY)
def test_wanted_logits_and_all_gradients_are_those_of_the_whole_layer(
    family: str, lora: LoRA | None, recomputed: bool, models: Mapping[str, Path]
) -> None:
    lm = language_model(models[family])
    model = lm if lora is None else adapted(lm, lora)
    assert enable_packing(plain_model(model))
    if recomputed:
        plain_model(model).gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    tokens = tokens_of_the_last_mlp(model)
    whole = scores(model, WANTED, None)
    alone = scores(model, WANTED, WANTED)
    torch.testing.assert_close(alone, whole, atol=1e-12, rtol=1e-10)
    passes = 2 if recomputed else 1
    assert tokens == [12] * passes + [4] * passes


def test_a_copy_and_a_second_proof_narrow_once(models: Mapping[str, Path]) -> None:
    model = language_model(models["llama"])
    assert enable_packing(model)
    whole = scores(model, WANTED, None)
    twin = copy.deepcopy(model)
    for other in (model, twin):
        assert enable_packing(other)
        tokens = tokens_of_the_last_mlp(other)
        torch.testing.assert_close(scores(other, WANTED, WANTED), whole, atol=1e-12, rtol=1e-10)
        assert tokens == [4]


def test_nothing_wanted_is_a_pass_all_the_same(models: Mapping[str, Path]) -> None:
    """Of a rank whose rows ran out: under ZeRO-3 it makes each pass that the others make."""
    model = language_model(models["llama"])
    assert enable_packing(model)
    none = torch.empty(0, dtype=torch.long)
    logits, gradients = scores(model, none, none)
    assert logits.shape[0] == 0
    assert {n for n, _ in model.named_parameters()} == set(gradients)
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_a_part_that_does_not_read_each_token_by_itself_reads_all(
    models: Mapping[str, Path],
) -> None:
    model = language_model(models["llama"])
    mlp = model.model.layers[-1].mlp
    each = mlp.forward
    mlp.forward = lambda x_1NH: each(x_1NH) * (2 if x_1NH.shape[1] == 4 else 1)
    assert enable_packing(model)
    tokens = tokens_of_the_last_mlp(model)
    scores(model, WANTED, WANTED)
    assert tokens == [12]
