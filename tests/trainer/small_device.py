"""A stage on devices that hold no whole model: whatever needs one is out of memory."""

from __future__ import annotations

from typing import Any

import torch


def stage() -> int:
    """The body of a forked rank."""
    from rlhf_trainer.__main__ import main
    from rlhf_trainer.engine import Engine
    from transformers import PreTrainedModel

    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("the whole model")

    PreTrainedModel.to = out_of_memory
    Engine.gathered = out_of_memory  # type: ignore[method-assign]
    return main(["run", "config/stage.yaml"])
