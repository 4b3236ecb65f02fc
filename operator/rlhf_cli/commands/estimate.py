"""rlhfctl estimate: what each stage takes of a device, and the job of its volume."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.rules.quantities import in_bytes
from rlhf_api.storage import Claim
from rlhf_planner import disk
from rlhf_planner.advice import Advice, what_fits
from rlhf_planner.hardware import DEVICES, FREE, Device, device_named, device_of_resource
from rlhf_planner.memory import Memory, Models, of_a_device, of_the_host

from rlhf_cli.failures import DONE, FAILED, Failure
from rlhf_cli.locations import resolved
from rlhf_cli.manifest import read_job
from rlhf_cli.shapes import shapes_of

GB: Final = 1e9


class Estimate(NamedTuple):
    """Of one stage."""

    stage: str
    devices: int
    memory: Memory
    device: Device | None  # None: nobody said which
    host: float  # bytes of a pod's memory for what is offloaded
    checkpoint: float  # bytes
    advice: Advice | None

    @property
    def fits(self) -> bool | None:
        """Whether a device has room; None where its memory is not known."""
        return None if self.device is None else self.memory.total <= self.device.room


def execute(args: argparse.Namespace) -> int:
    """Print the table; 1 where a stage does not fit."""
    job, manifest = read_job(args.file, args.set)
    job = resolved(job, manifest.folder)
    device = _device(args.gpu)
    models, notes = shapes_of(job, args.config)
    found = [_of_stage(job, name, models, device) for name in job.spec.stages.present()]
    volume = disk.of_a_job(job, models)
    if args.output == "json":
        print(json.dumps(_as_json(models, found, volume, notes), indent=2))
    else:
        print("\n".join(_as_text(job, models, found, volume, notes)))
    return FAILED if any(each.fits is False for each in found) else DONE


def _device(text: str | None) -> Device | None:
    if text is None:
        return None
    found = device_named(text)
    if found is None:
        names = ", ".join(device.name for device in DEVICES)
        raise Failure(f"--gpu {text}: is none of {names}, and no memory such as 80GB or 79Gi")
    return found


def _of_stage(job: RLHFJob, name: str, models: Models, device: Device | None) -> Estimate:
    stage, resources = job.spec.stages.present()[name], job.spec.resources_of(name)
    on_gpu = resources.gpus_per_node > 0
    room = (device or device_of_resource(resources.device)) if on_gpu else None
    evaluates = job.spec.evaluation is not None
    memory = of_a_device(
        stage,
        models,
        resources,
        evaluates=evaluates,
        device_memory=room.memory if room else None,
    )
    advice = None
    if room and memory.total > room.room:
        advice = what_fits(stage, models, resources, room, evaluates=evaluates)
    return Estimate(
        stage=name,
        devices=resources.nodes * resources.ranks_per_node,
        memory=memory,
        device=room,
        host=of_the_host(stage, models, resources),
        checkpoint=disk.of_a_checkpoint(stage, models, on_gpu),
        advice=advice,
    )


def _as_text(
    job: RLHFJob, models: Models, found: list[Estimate], volume: float, notes: list[str]
) -> Iterator[str]:
    policy = models.policy
    yield (
        f"{job.metadata.name}: {policy.kind}, {_count(policy.parameters)} parameters, "
        f"{policy.layers} layers of {policy.hidden}"
    )
    yield from (f"Note: {note}" for note in notes)
    yield ""
    yield "GB (10⁹ bytes) of each device:"
    yield from _columns(found)
    yield ""
    for each in found:
        if each.host:
            yield f"{each.stage} offloads {_gb(each.host)} GB to the memory of each pod."
    yield _of_the_volume(job, volume)
    for each in found:
        yield from _verdict(each)
    if any(job.spec.resources_of(e.stage).gpus_per_node and not e.device for e in found):
        yield "With --gpu it says whether they fit: rlhfctl estimate --help."


def _columns(found: list[Estimate]) -> Iterator[str]:
    """A column a stage: four of them are narrower than the parts of one."""
    rows = [
        ("devices", [str(each.devices) for each in found]),
        ("weights that train", [_gb(each.memory.weights) for each in found]),
        ("gradients", [_gb(each.memory.gradients) for each in found]),
        ("optimizer", [_gb(each.memory.optimizer) for each in found]),
        ("models that only read", [_gb(each.memory.frozen) for each in found]),
        ("buckets, logits, runtime", [_gb(each.memory.reserve) for each in found]),
        ("+ activations, in training", [_gb(each.memory.activations) for each in found]),
        ("+ weights, keys, values, in generation", [_gb(e.memory.generation) for e in found]),
        ("at most", [_gb(each.memory.total) for each in found]),
    ]
    if any(each.device for each in found):
        rows.append(("a device has", [_gb(e.device.memory) if e.device else "" for e in found]))
    rows.append(("a checkpoint on the volume", [_gb(each.checkpoint) for each in found]))
    names = [each.stage for each in found]
    width = max(7, *map(len, names))
    head = max(len(name) for name, _ in rows)
    for name, cells in [("", names), *rows]:
        yield name.ljust(head) + "".join(cell.rjust(width + 2) for cell in cells)


def _of_the_volume(job: RLHFJob, volume: float) -> str:
    said = f"Checkpoints and outputs take {_gb(volume)} GB of their volume at most"
    checkpoints = job.spec.checkpoints
    if checkpoints.existing_claim or checkpoints.uri:
        return f"{said}."
    claim = checkpoints.claim or Claim()
    size = float(in_bytes(claim.size))
    is_enough = "" if volume <= size else ", which is too small: set spec.checkpoints.claim.size"
    return f"{said}; the claim has {_gb(size)} GB ({claim.size}){is_enough}."


def _verdict(each: Estimate) -> Iterator[str]:
    if each.device is None or each.fits:
        return
    memory, device = each.memory, each.device
    yield ""
    yield (
        f"{each.stage} does not fit: in {memory.worst_moment} it takes {_gb(memory.total)} GB, and "
        f"{device.name} has {_gb(device.memory)}, of which {FREE:.0%} are better left."
    )
    if each.advice is None:
        yield "  No setting makes it fit: it takes more devices, or larger ones."
        return
    result = "" if each.advice.keeps_result else ", which train adapters in place of all weights"
    yield f"  It takes {_gb(each.advice.total)} GB with these settings{result}:"
    for change in each.advice.changes:
        value = str(change.value).lower()
        yield f"    --set spec.stages.{each.stage}.{change.path}={value}"


def _count(number: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def _gb(amount: float) -> str:
    gb = amount / GB
    return f"{gb:.0f}" if gb >= 100 or not gb else f"{gb:.1f}" if gb >= 0.1 else f"{gb:.1g}"


def _as_json(
    models: Models, found: list[Estimate], volume: float, notes: list[str]
) -> dict[str, Any]:
    return {
        "model": {"type": models.policy.kind, "parameters": models.policy.parameters},
        "notes": notes,
        "volumeBytes": round(volume),
        "stages": {each.stage: _stage_as_json(each) for each in found},
    }


def _stage_as_json(each: Estimate) -> dict[str, Any]:
    memory = each.memory
    advice = each.advice
    return {
        "devices": each.devices,
        "bytesOfADevice": {name: round(value) for name, value in memory._asdict().items()}
        | {"total": round(memory.total)},
        "worstMoment": memory.worst_moment,
        "deviceBytes": round(each.device.memory) if each.device else None,
        "fits": each.fits,
        "hostBytes": round(each.host),
        "checkpointBytes": round(each.checkpoint),
        "changes": {change.path: change.value for change in advice.changes} if advice else None,
    }
