"""The last layer reads all tokens, and goes on with the wanted ones alone.

What is wanted of a trunk are its hidden states at some positions: of an answer's tokens, of a row's
last one. Of the other tokens the last layer needs keys and values, which the wanted ones attend to.
Its queries, its output projection and its MLP, nine tenths of its products, run on the wanted ones;
the others have zeros in their place, which nobody reads.

Hooks do it: adapters, ZeRO-3's gathering and gradient checkpointing stay as they are. Where the
last layer has none of the parts below, all of it is computed.

Shapes: N packed tokens, W wanted ones, H a module's width.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

WANTED: Final = "wanted_positions"
"""Keyword of a forward pass, down to its layers: (W,) packed positions, each once."""

PARTS: Final = ("self_attn.q_proj", "self_attn.o_proj", "attn.c_proj", "mlp")
"""Of a layer, where families of models have them: each reads every token by itself, and what it
says of a token is needed for that token alone."""


class LastLayer:
    """Hooks on a model's last layer; they do nothing in a forward pass without `WANTED`."""

    def __init__(self, layer: nn.Module, parts: list[nn.Module]) -> None:
        self.wanted_W: Tensor | None = None
        self.tokens = 0
        self.handles = [
            layer.register_forward_pre_hook(self._begin, with_kwargs=True),
            layer.register_forward_hook(self._end, always_call=True),
        ]
        for part in parts:
            self.handles.append(part.register_forward_pre_hook(self._narrow))
            self.handles.append(part.register_forward_hook(self._widen))

    def remove(self) -> None:
        """Let the layer compute all tokens again."""
        for handle in self.handles:
            handle.remove()

    # By the keyword rather than by a state of the model: gradient checkpointing calls the layer
    # again in the backward pass, with the keywords of the forward pass.
    def _begin(self, layer: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        self.wanted_W = keywords.get(WANTED)

    def _end(self, layer: nn.Module, args: Any, output: Any) -> None:
        self.wanted_W = None

    def _narrow(self, part: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if self.wanted_W is None:
            return None
        (x_1NH,) = args
        self.tokens = x_1NH.shape[1]
        return (x_1NH.index_select(1, self.wanted_W),)

    def _widen(self, part: nn.Module, args: Any, out_1WH: Tensor) -> Tensor | None:
        if self.wanted_W is None:
            return None
        zeros_1NH = out_1WH.new_zeros(1, self.tokens, out_1WH.shape[2])
        return zeros_1NH.index_copy(1, self.wanted_W, out_1WH)


def hooked_last_layer(model: Any) -> LastLayer | None:
    """Hooks on the last layer of a transformers model; None if it has them, or no such parts."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        return None
    layer: Any = lists[0][-1]
    inside = dict(layer.named_modules())
    parts = [inside[name] for name in PARTS if name in inside]
    if not parts or getattr(layer, "goes_on_with_wanted", False):
        return None
    layer.goes_on_with_wanted = True  # stays with copies of the model, as hooks do
    return LastLayer(layer, parts)
