"""Two pieces of training that owe each other nothing, side by side on one CPU.

Threads that share a matrix product wait for each other at its end, and at all that is computed
between two products most of them have nothing to do. So each piece gets a share of the cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from rlhf_api.stages.common import StageCommon

from rlhf_trainer.engine import zero_stage
from rlhf_trainer.ranks import Ranks

A = TypeVar("A")
B = TypeVar("B")


def may_share_cores(settings: StageCommon, ranks: Ranks) -> bool:
    """Whether pieces may run at once: no collective whose order matters, no draw of random numbers
    from a source that both would use, and cores for each.
    """
    draws = settings.lora is not None and settings.lora.dropout > 0
    return (
        ranks.device.type == "cpu"
        and ranks.world_size == 1
        and zero_stage(settings, ranks) < 3  # gathers parameters layer by layer
        and not draws
        and torch.get_num_threads() > 1
    )


def side_by_side(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """What both return; `first` has the calling thread and the odd core. An error is raised when
    both have ended: that of `first`, where both failed.
    """
    cores, with_gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def on_its_share() -> B:
        torch.set_num_threads(cores // 2)
        with torch.set_grad_enabled(with_gradients):  # a thread begins with gradients
            return second()

    try:
        with ThreadPoolExecutor(1) as beside:
            other = beside.submit(on_its_share)
            torch.set_num_threads(cores - cores // 2)
            own = first()
    finally:
        torch.set_num_threads(cores)
    return own, other.result()
