"""The actor's weights as a checkpoint has them, for an engine that keeps a copy of its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.models.whole_weights import layers_whole


def checkpoint_weights(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each weight by the name that `save_pretrained` gives it, adapters merged, layer by layer.

    With ZeRO-3 a layer is gathered while it is its turn: every rank must go through all of them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    plain = plain_model(lm)
    for weights in layers_whole(lm):
        detached = {name: weight.detach() for name, weight in weights.items()}
        # transformers may keep experts in one tensor that a checkpoint has one by one
        yield from revert_weight_conversion(plain, detached).items()
