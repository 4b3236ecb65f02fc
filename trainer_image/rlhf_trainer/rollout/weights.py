"""The actor's weights as a checkpoint has them, for an engine that keeps a copy of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from rlhf_trainer.lora import adapted_parameter, has_adapter, merged, plain_model


def checkpoint_weights(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight by the name that `save_pretrained` gives it, adapters merged, layer by layer.

    With ZeRO-3 a layer is gathered while it is its turn: every rank must go through all of them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    plain = plain_model(lm)
    for name, layer in _layers(plain):
        adapted = has_adapter(layer)
        with _whole(list(layer.parameters(recurse=adapted))):
            adapters = list(_adapters(layer))
            own = adapters[-1].base_layer if adapters else layer
            weights = {f"{name}.{k}": p.detach() for k, p in own.named_parameters(recurse=False)}
            for adapter in adapters:
                key = f"{name}.{adapted_parameter(adapter)}"
                weights[key] = merged(weights[key], adapter.get_delta_weight("default"))
            # transformers may keep experts in one tensor that a checkpoint has one by one
            yield from revert_weight_conversion(plain, weights).items()


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that have parameters of their own; of one with an adapter, the whole."""
    inside = "\0"
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if has_adapter(module):
            inside = f"{name}."
            yield name, module
        elif next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _adapters(layer: Any) -> Iterator[Any]:
    """The adapters around a base layer, from the outside."""
    while has_adapter(layer):
        yield layer
        layer = layer.base_layer


def _whole(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gathered
