"""Shapes of models from config.json: transformers' own models have as many parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlhf_planner.architecture import EXPERTS, GATED, PLAIN, UnknownArchitecture, read_config
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {"intermediate_size": 704, "num_key_value_heads": 4, "head_dim": 48}
SPARSE: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None},
    "gpt_neox": {"intermediate_size": 704},
    "opt": {"ffn_dim": 704, "word_embed_proj_dim": 256},
    "phi": {"intermediate_size": 704},
    "starcoder2": {"intermediate_size": 704, "num_key_value_heads": 4},
    "qwen2_moe": SPARSE | {"shared_expert_intermediate_size": 160, "num_key_value_heads": 4},
    "qwen3_moe": GROUPED | SPARSE,
    "mixtral": GROUPED | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "olmoe": GROUPED | {"num_experts": 8, "num_experts_per_tok": 2},
    "granitemoe": GROUPED | {"num_local_experts": 8, "num_experts_per_tok": 2},
}


def made(kind: str) -> tuple[dict[str, Any], nn.Module]:
    """What a config.json of this kind holds, and the model that transformers makes of it."""
    config = AutoConfig.for_model(kind, **SHAPE | OWN.get(kind, GROUPED))
    with torch.device("meta"):
        return config.to_dict(), AutoModelForCausalLM.from_config(config)


def known_to_transformers() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted((GATED | EXPERTS | PLAIN) & CONFIG_MAPPING_NAMES.keys())


@pytest.mark.parametrize("kind", known_to_transformers())
def test_its_weights_are_those_of_transformers_model(kind: str) -> None:
    config, model = made(kind)
    ours = read_config(config)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    real = sum(p.numel() for p in model.parameters())
    assert real - vectors <= ours.parameters <= real  # what is left out are biases and norms
    found = {
        name.rsplit(".", 1)[-1]: sorted(part.weight.shape)
        for name, part in model.named_modules()
        if hasattr(part, "weight") and part.weight.dim() == 2
    }
    expected = {linear.name: sorted((linear.inner, linear.outer)) for linear in ours.linears}
    assert expected == {name: found[name] for name in expected}
    keys = {name: shape for name, shape in found.items() if name == "k_proj"}
    assert all(sorted((256, ours.key_value)) == shape for shape in keys.values())


def test_of_experts_a_token_meets_as_many_as_the_config_says() -> None:
    """Mixtral-8x7B, whose authors count 46.7 and 12.9 billion (Jiang et al. 2024)."""
    found = read_config(
        {
            "model_type": "mixtral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        }
    )
    assert round(found.parameters / 1e9, 1) == 46.7
    assert round(found.active / 1e9, 1) == 12.9
    assert found.intermediate == 2 * 14336


def test_a_model_that_sees_is_read_by_its_language_part() -> None:
    config, _ = made("gemma3_text")
    whole = {"model_type": "gemma3", "text_config": config}
    assert read_config(whole) == read_config(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "model_type None is none of"),
        ({"model_type": "mamba"}, "model_type mamba is none of cohere, cohere2"),
        ({"model_type": "llama"}, "hidden_size is None, and has to be a number"),
        (SHAPE | {"model_type": "llama", "hidden_size": "256"}, "hidden_size is '256', and"),
    ],
)
def test_what_it_cannot_read_is_said(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownArchitecture, match=said):
        read_config(config)
