"""What to set where a stage does not fit on its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from rlhf_api.resources import Resources
from rlhf_api.stages import AnyStage
from rlhf_api.stages.common import LoRA

from rlhf_planner.hardware import Device
from rlhf_planner.memory import Models, of_a_device


class Change(NamedTuple):
    """A field of a stage, below the stage, and its value."""

    path: str
    value: Any


class Advice(NamedTuple):
    """Changes that let a stage fit, and what it takes of a device with them."""

    changes: tuple[Change, ...]
    total: float  # bytes
    keeps_result: bool  # what is trained stays the same


CHECKPOINTING: Final = Change("gradientCheckpointing", True)
ONE_ROW: Final = Change("microBatchSize", 1)
PARTITION: Final = Change("zero.stage", 3)
OFFLOAD: Final = Change("zero.offload", "cpu")
ADAPTER: Final = Change("lora.rank", 16)
CHEAPEST_FIRST: Final = (CHECKPOINTING, ONE_ROW, PARTITION, OFFLOAD)
"""By what they cost in time: a third of the computing, smaller products, traffic between GPUs,
traffic to the host at each step."""


def what_fits(
    stage: AnyStage,
    models: Models,
    resources: Resources,
    device: Device,
    *,
    evaluates: bool = False,
) -> Advice | None:
    """The cheapest changes after which the stage fits on its devices: none of them could be left
    out. Adapters, which change what is trained, come last. None: nothing does.
    """

    def total(changes: Sequence[Change]) -> float:
        tried = changed(stage, changes)
        return of_a_device(
            tried, models, resources, evaluates=evaluates, device_memory=device.memory
        ).total

    def fits(changes: Sequence[Change]) -> bool:
        return total(changes) <= device.room

    ladder = [change for change in CHEAPEST_FIRST if changed(stage, [change]) != stage]
    for first in _beginnings(stage):
        for steps in range(len(ladder) + 1):
            tried = [*first, *ladder[:steps]]
            if fits(tried):
                needed = _without_needless(tried, first, fits)
                return Advice(tuple(needed), total(needed), keeps_result=not first)
    return None


def changed(stage: AnyStage, changes: Sequence[Change]) -> AnyStage:
    """The stage with these settings."""
    for change in changes:
        match change.path.split("."):
            case ["lora", "rank"]:
                update: dict[str, Any] = {"lora": LoRA(rank=change.value)}
            case ["zero", part]:
                update = {"zero": stage.zero.model_copy(update={part: change.value})}
            case ["gradientCheckpointing"]:
                update = {"gradient_checkpointing": change.value}
            case ["microBatchSize"]:
                update = {"micro_batch_size": change.value}
            case _:
                raise ValueError(change.path)
        stage = stage.model_copy(update=update)
    return stage


def _beginnings(stage: AnyStage) -> Iterator[tuple[Change, ...]]:
    yield ()
    if stage.lora is None:
        yield (ADAPTER,)


def _without_needless(
    tried: Sequence[Change], always: Sequence[Change], fits: Callable[[Sequence[Change]], bool]
) -> list[Change]:
    """Those that it does not fit without; the dearest are left out first."""
    kept = list(tried)
    for change in reversed(tried):
        fewer = [each for each in kept if each != change]
        if change not in always and fits(fewer):
            kept = fewer
    return kept
