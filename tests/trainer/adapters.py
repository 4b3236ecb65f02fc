"""Adapters that do something, for tests."""

from __future__ import annotations

from typing import Any

import torch
from rlhf_api.stages.common import LoRA
from rlhf_trainer.models.lora import add_lora


def adapted(model: Any, lora: LoRA) -> Any:
    """With adapters that do something: their B (of an embedding, their A) is 0 at first."""
    wrapped = add_lora(model, lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return wrapped
