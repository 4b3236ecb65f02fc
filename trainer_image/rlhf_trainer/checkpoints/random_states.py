"""The random states of every library, as a checkpoint keeps them: tensors and JSON values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import torch


def random_states() -> dict[str, Any]:
    """Of python, numpy, torch on the CPU and this rank's CUDA device."""
    import numpy as np

    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(keys.astype("int64")), *map(float, rest)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave."""
    import numpy as np

    random.setstate(states["python"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    keys = keys.numpy().astype("uint32")
    np.random.set_state((kind, keys, int(position), int(has_gauss), gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
