"""Activations by the estimate's formula, beside what autograd keeps in the trainer's own forward
pass: the bytes of all that is saved for the backward pass, which no device has a say in.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from rlhf_api.resources import Resources
from rlhf_api.stages import SFTStage
from rlhf_planner.architecture import read_config
from rlhf_planner.memory import Models, of_a_device
from rlhf_trainer.models.lora import add_lora
from rlhf_trainer.models.scored_lm import ScoredLM, TokenBatch, token_batch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

LENGTH = 320
"""Tokens of a row: above 256 a CPU has a flash kernel, which keeps no scores, as GPUs do."""
ROWS = 2
SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPU = Resources(gpus_per_node=1)


def batch() -> TokenBatch:
    rows = [random.Random(i).choices(range(3, 128), k=LENGTH + 1) for i in range(ROWS)]
    return token_batch([row[:200] for row in rows], [row[200:] for row in rows], "cpu")


def saved_bytes(model: nn.Module) -> int:
    """Of distinct storages that the backward pass needs, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def note(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(batch())[0].sum()
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def measured(kind: str, settings: SFTStage) -> float:
    """Bytes a token that each further layer keeps."""
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    found = []
    for layers in (2, 4):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, num_hidden_layers=layers, **SHAPE)
        lm: Any = AutoModelForCausalLM.from_config(config).to(dtype).train()
        scored = ScoredLM(lm if settings.lora is None else add_lora(lm, settings.lora))
        if settings.gradient_checkpointing:
            scored.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(saved_bytes(scored))
    return (found[1] - found[0]) / 2 / (ROWS * LENGTH)


def estimated(kind: str, settings: SFTStage) -> float:
    """The same by the estimate."""
    found = []
    for layers in (2, 4):
        config = AutoConfig.for_model(kind, num_hidden_layers=layers, **SHAPE)
        shape = read_config(config.to_dict())
        found.append(of_a_device(settings, Models(shape, shape), GPU).activations)
    return (found[1] - found[0]) / 2 / (settings.micro_batch_size * settings.max_length)


def stage(**settings: Any) -> SFTStage:
    return SFTStage.model_validate({"data": {"source": "unused"}, **settings})


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma2", "gemma3_text", "mixtral"])
def test_of_each_family(kind: str) -> None:
    settings = stage()
    assert estimated(kind, settings) == pytest.approx(measured(kind, settings), rel=0.12)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp32"},
        {"lora": {"rank": 8}},
        {"gradientCheckpointing": True},
        {"gradientCheckpointing": True, "precision": "fp32"},
    ],
    ids=str,
)
def test_of_each_setting(settings: dict[str, Any]) -> None:
    found = stage(**settings)
    assert estimated("llama", found) == pytest.approx(measured("llama", found), rel=0.1)
