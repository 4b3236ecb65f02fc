"""A model's weights whole and with its adapters merged, layer by layer.

Under ZeRO-3 a rank holds a share of each parameter, and all of them together may be larger than its
device. Here no more than one layer is whole at a time; with adapters, one layer's update.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from rlhf_trainer.models.lora import (
    adapted_parameter,
    base_state_dict,
    has_adapter,
    merged,
    plain_model,
    trained_copy,
)


def layers_whole(lm: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters of each layer by their names in the model without adapters, while it is this
    layer's turn. Under ZeRO-3 a collective: every rank must go through all of them.
    """
    for name, layer in _layers(plain_model(lm)):
        adapted = has_adapter(layer)
        with whole(list(layer.parameters(recurse=adapted))):
            adapters = list(_adapters(layer))
            own = adapters[-1].base_layer if adapters else layer
            weights = {f"{name}.{k}": p for k, p in own.named_parameters(recurse=False)}
            for adapter in adapters:
                key = f"{name}.{adapted_parameter(adapter)}"
                delta = adapter.get_delta_weight("default")
                weights[key] = merged(weights[key], delta)
            yield weights


def merged_state_dict(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The state dict that the model would have with its adapters merged, W + α/r·BA, in the host's
    memory. The model is left as it is: merging in place and back is not exact.

    Under ZeRO-3 a collective; ranks that need no state dict say `keep=False` and get none.
    """
    found: dict[str, Tensor] = {}
    tied: dict[int, Tensor] = {}  # they stay one tensor
    for weights in layers_whole(model):
        for name, weight in weights.items() if keep else ():
            if not isinstance(weight, nn.Parameter):
                found[name] = weight.cpu()
                continue
            if id(weight) not in tied:
                tied[id(weight)] = _in_host_memory(weight)
            found[name] = tied[id(weight)]
    if not keep:
        return {}
    state = base_state_dict(model)  # also what is no parameter; its order is that of the file
    return {name: found[name] if name in found else value.cpu() for name, value in state.items()}


def whole(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within it these parameters are whole on every rank; under ZeRO-3 a collective."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


def _in_host_memory(weight: Tensor) -> Tensor:
    """A copy where the weight is elsewhere, or, under ZeRO-3, about to be partitioned again."""
    detached = weight.detach().cpu()
    return detached.clone() if hasattr(weight, "ds_id") else detached


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that have parameters of their own; of one with an adapter, the whole; of one that is
    there twice, what trains."""
    inside = "\0"
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if has_adapter(module):
            inside = f"{name}."
            yield name, module
        elif (copy := trained_copy(module)) is not None:
            inside = f"{name}."
            yield from _layers_below(copy, name)
        elif next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _layers_below(module: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """The same of a module without adapters, which has a name in a model."""
    for below, layer in module.named_modules(prefix=name):
        if next(layer.parameters(recurse=False), None) is not None:
            yield below, layer


def _adapters(layer: Any) -> Iterator[Any]:
    """The adapters around a base layer, from the outside."""
    while has_adapter(layer):
        yield layer
        layer = layer.base_layer
