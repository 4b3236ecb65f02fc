"""The processes that train together: which one this is, and the few collectives that stages use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from rlhf_api.cpus import usable_cpus
from rlhf_api.run import DEVICES
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout, _world

from rlhf_trainer.errors import DeviceMissing, first_line
from rlhf_trainer.freed_memory import keep_freed_memory
from rlhf_trainer.heartbeat import Heartbeat
from rlhf_trainer.quiet import import_deepspeed

LONGEST_WAIT: Final = timedelta(hours=6)
"""Of a rank for another that writes, uploads or asks; one that is lost ends the wait at once, one
that stands still within `heartbeat`'s time."""
TORCHRUN_DEFAULTS: Final[Mapping[str, str]] = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among `world_size`; every collective must be called by all of them alike."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # processes of this node
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    words: Any = field(default=None, repr=False, compare=False)
    """Group for what is no tensor and for waits; None: that of the tensors. Rank 0 may write a
    large model, or ask a slow judge, for longer than NCCL waits for a rank."""
    heartbeat: Heartbeat | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @classmethod
    def start(cls) -> Ranks:
        """Join the process group that torchrun describes; without torchrun, a group of one.

        NCCL where there is CUDA, else gloo. DeepSpeed uses the same group. Words have gloo.
        """
        env = os.environ
        env.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        rank, world, local, here = (int(env.get(k, d)) for k, d in TORCHRUN_DEFAULTS.items())
        device = _device(env, local, here)
        cuda = device.type == "cuda"
        torch.set_num_threads(cpu_threads(env, usable_cpus()))
        if cuda:
            torch.cuda.set_device(device)
        else:
            env.setdefault("DS_ACCELERATOR", "cpu")
            keep_freed_memory()
        _join(rank, world, "nccl" if cuda else "gloo")
        words = _patient_group() if world > 1 else None
        heartbeat = Heartbeat(_get_default_store(), rank, world) if world > 1 else None
        return cls(rank, world, local, here, device, words, heartbeat)

    def stop(self, together: bool = True) -> None:
        """Leave the group; without this, torch warns at exit.

        NCCL lets go of a communicator once all ranks of the node do (ncclCommDestroy). So a rank
        that fails alone, while others wait for it in a collective, does not leave `together`: the
        end of its process is that of its share (`left_open`).
        """
        if self.heartbeat:
            self.heartbeat.stop()
        if not together and self.world_size > 1:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        deepspeed_comm = sys.modules.get("deepspeed.comm.comm")
        if deepspeed_comm is not None:
            deepspeed_comm.cdb = None  # type: ignore[attr-defined]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, as a new tensor; the identity on one rank."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, as a new tensor; the identity on one rank."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def broadcast(self, obj: T) -> T:
        """Rank 0's object, on every rank. It is pickled: keep it small."""
        if self.world_size == 1:
            return obj
        box: list[Any] = [obj]
        dist.broadcast_object_list(box, src=0, group=self.words)
        received: T = box[0]
        return received

    def gather_objects(self, obj: T) -> list[T]:
        """The objects of all ranks, in rank order, on every rank. Pickled, so keep them small."""
        if self.world_size == 1:
            return [obj]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, obj, group=self.words)
        return box

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.words)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within it collectives on tensors may wait as long as words: for what a library does alone
        on each rank, as DeepSpeed's saving, between collectives of its own. A collective that hangs
        because of a device or a network is to be found sooner everywhere else.
        """
        if self.world_size == 1:
            yield
            return
        before = {group: _timeout(group, self.device) for group in _world.pg_map}
        own = {group: timeout for group, timeout in before.items() if timeout is not None}
        try:
            for group in own:
                _set_pg_timeout(LONGEST_WAIT, group)
            yield
        finally:
            for group, timeout in own.items():
                _set_pg_timeout(timeout, group)

    def on_main(self, action: Callable[[], T]) -> T:
        """Let rank 0 act and give its result to all; if it fails, all ranks raise its exception."""
        if self.world_size == 1:
            return action()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = (action(), None)
            except Exception as error:
                outcome = (None, error)
        result, failed = self.broadcast(outcome)
        if failed is not None:
            raise failed
        done: T = result
        return done

    def on_each(self, action: Callable[[], object]) -> None:
        """Let every rank act; if one fails, all ranks raise its exception."""
        _raise_first(self.gather_objects(_failure_of(action)))

    def on_each_node(self, action: Callable[[], object]) -> None:
        """Let the first rank of each node act; if one fails, all ranks raise its exception."""
        self.on_each(action if self.local_rank == 0 else lambda: None)

    def group_of_nodes(self) -> NodeGroup:
        """The first ranks of all nodes, as a group of their own. A collective of all ranks."""
        firsts = list(range(0, self.world_size, self.local_world_size))
        if len(firsts) == 1:
            return NodeGroup(None, 1)
        return NodeGroup(_patient_group(firsts), len(firsts))

    def _reduced(self, tensor: Tensor, op: Any) -> Tensor:
        if self.world_size == 1:
            return tensor
        box = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(box, op)
        return box.to(tensor.device)


class NodeGroup:
    """The first ranks of all nodes. One thread of each may use it while others train."""

    def __init__(self, group: Any, size: int) -> None:
        self._group, self._size = group, size

    def all_or_none(self, action: Callable[[], object]) -> None:
        """Let each act, and wait for all; if one fails, each raises its exception."""
        failed = _failure_of(action)
        box = [failed]
        if self._group is not None:
            box = [None] * self._size
            dist.all_gather_object(box, failed, group=self._group)
        _raise_first(box)


def _timeout(group: Any, device: torch.device) -> timedelta | None:
    """How long a group waits with tensors of this device; None where it takes none of them."""
    try:
        found: timedelta = group._get_backend(device).options._timeout
    except RuntimeError:
        return None
    return found


def left_open() -> bool:
    """Whether this process has not left its group, so that an orderly exit could wait for others:
    torch aborts communicators as it is unloaded, and NCCL may wait for ranks of the node in that,
    too (NVIDIA/nccl#1777)."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _patient_group(ranks: Sequence[int] | None = None) -> Any:
    """These ranks, or all of them, in a group that waits long. A collective of all ranks."""
    return dist.new_group(ranks, timeout=LONGEST_WAIT, backend="gloo")


def _failure_of(action: Callable[[], object]) -> Exception | None:
    try:
        action()
    except Exception as error:
        return error
    return None


def _raise_first(outcomes: Sequence[Exception | None]) -> None:
    for failed in outcomes:
        if failed is not None:
            raise failed


def cpu_threads(env: Mapping[str, str], cores: int) -> int:
    """Threads of this process: OMP_NUM_THREADS where the user set it, else an equal share of the
    pod's CPUs: one more than there are makes a step several times slower.

    torchrun sets OMP_NUM_THREADS to 1 where it is unset; our launcher sets the share itself.
    """
    if env.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(env["OMP_NUM_THREADS"]))
    return max(1, cores // int(env.get("LOCAL_WORLD_SIZE", "1")))


def _device(env: Mapping[str, str], local_rank: int, ranks_here: int) -> torch.device:
    """This rank's. DeviceMissing where the pod has devices and torch does not see one for each of
    its ranks: training would go on, on the CPU.
    """
    if env.get("DS_ACCELERATOR") == "cpu":
        return torch.device("cpu")  # whatever the container sees, as it may see all of its node's
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0  # NVML counts all drivers'
    given = int(env.get(DEVICES, "0"))
    if not seen and not given:
        return torch.device("cpu")
    if seen < max(given, ranks_here):
        raise DeviceMissing(
            f"torch sees {seen} of the pod's {max(given, ranks_here)} devices{_why_none(seen)}; "
            "look at the node's driver and container runtime: docs/guides/troubleshooting.md"
        )
    return torch.device("cuda", local_rank)


def _why_none(seen: int) -> str:
    """What torch says of a machine without any, as that its driver is too old."""
    if seen:
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f" ({first_line(error)})"
    return ""


def _join(rank: int, world_size: int, backend: str) -> None:
    """A group of one needs no port: an in-memory store stands for the rendezvous."""
    if not dist.is_initialized():
        if world_size == 1:
            store = torch._C._distributed_c10d.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            dist.init_process_group(backend, rank=rank, world_size=world_size)
    deepspeed = import_deepspeed()
    # The op for shared-memory all-reduce serves inference alone, and compiles C++ for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
