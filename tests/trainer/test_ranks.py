"""Which process this is, and the collectives of a group of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import ForkedRun
from rlhf_api.run import DEVICES, TERMINATION_LOG, ExitCode
from rlhf_trainer import heartbeat
from rlhf_trainer.errors import DeviceMissing
from rlhf_trainer.ranks import Ranks, _device, _timeout, cpu_threads
from torch.distributed.distributed_c10d import _set_pg_timeout
from trainer_pod import free_port


def test_a_group_of_one_needs_no_launcher(ranks: Ranks) -> None:
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    assert torch.distributed.is_initialized()


def test_collectives_of_one_rank_are_the_identity() -> None:
    alone = Ranks()
    tensor = torch.tensor([1.0, 2.0])
    assert torch.equal(alone.sum(tensor), tensor)
    assert torch.equal(alone.max(tensor), tensor)
    assert alone.broadcast({"a": 1}) == {"a": 1}
    assert alone.gather_objects("x") == ["x"]
    assert alone.on_main(lambda: 3) == 3
    alone.barrier()


def test_what_fails_on_the_main_rank_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Ranks().on_main(fail)


def beat_fast(most_silent: int) -> None:
    heartbeat.BEAT, heartbeat.MOST_SILENT = 0.1, most_silent  # type: ignore[misc]


def wait_for_a_slow_main() -> int:
    beat_fast(most_silent=20)
    ranks = Ranks.start()
    _set_pg_timeout(timedelta(seconds=1), None)
    ranks.on_main(lambda: time.sleep(3))
    assert ranks.gather_objects(ranks.rank) == [0, 1]
    time.sleep(3 * ranks.rank)
    ranks.barrier()
    time.sleep(2.5 * ranks.is_main)  # the other one has ended by then
    ranks.stop()
    return 0


def test_a_rank_that_is_slow_at_what_it_does_alone_is_waited_for(tmp_path: Path) -> None:
    started = ForkedRun(tmp_path, 2, free_port(), wait_for_a_slow_main)
    assert started.wait() == [0, 0], started.log


def save_at_different_speeds() -> int:
    second = timedelta(seconds=1)
    ranks = Ranks.start()
    of_a_library = dist.new_group(timeout=second)
    _set_pg_timeout(second, None)
    with ranks.patient():
        time.sleep(2.5 * ranks.rank)
        dist.barrier()
        time.sleep(2.5 * ranks.is_main)
        dist.barrier(of_a_library)
    found = {_timeout(group, ranks.device) for group in (dist.group.WORLD, of_a_library)}
    ranks.stop()
    return 0 if found == {second} else 1


def test_ranks_that_save_at_a_slow_disks_pace_are_waited_for_then_alone(tmp_path: Path) -> None:
    started = ForkedRun(tmp_path, 2, free_port(), save_at_different_speeds)
    assert started.wait() == [0, 0], started.log


def stand_still() -> int:
    beat_fast(most_silent=10)
    ranks = Ranks.start()
    ranks.barrier()
    time.sleep(0.5)  # it has beaten
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.barrier()
    return 0


def test_a_rank_that_is_stopped_in_a_collective_ends_the_others_and_is_named(
    tmp_path: Path,
) -> None:
    started = ForkedRun(tmp_path, 2, free_port(), stand_still)
    waits, stopped = started.processes
    waits.join(180)
    stopped.kill()
    assert waits.exitcode == ExitCode.TRANSIENT, started.log
    told = json.loads((tmp_path / TERMINATION_LOG).read_text("utf-8"))
    assert told["reason"] == "RankSilent"
    assert told["message"].startswith(f"rank 1 on {socket.gethostname()} has shown no life for 1 s")


@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"OMP_NUM_THREADS": "many"}, 8),
    ],
)
def test_threads_are_the_users_number_or_an_equal_share(env: dict[str, str], threads: int) -> None:
    assert cpu_threads(env, 8) == threads


def on_a_machine(monkeypatch: pytest.MonkeyPatch, gpus: int, works: bool = True) -> None:
    """As torch sees it: a driver that is too old still counts its devices."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver is too old (found 12040).\nUpdate")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: works and gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.mark.parametrize(
    ("gpus", "env", "device"),
    [
        (0, {}, "cpu"),
        (8, {}, "cuda:3"),
        (8, {DEVICES: "8"}, "cuda:3"),
        (8, {"DS_ACCELERATOR": "cpu"}, "cpu"),  # a pod without devices that sees the node's
        (0, {"DS_ACCELERATOR": "cpu", DEVICES: "8"}, "cpu"),
    ],
)
def test_a_rank_has_the_device_of_its_place_in_the_pod(
    gpus: int, env: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, gpus)
    assert _device(env, 3, 4) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "works", "told"),
    [
        (8, False, "torch sees 0 of the pod's 8 devices (The NVIDIA driver is too old"),
        (1, True, "torch sees 1 of the pod's 8 devices; look"),
    ],
)
def test_devices_that_torch_does_not_see_are_told_of_and_no_cpu_stands_in(
    gpus: int, works: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, gpus, works)
    with pytest.raises(DeviceMissing) as caught:
        _device({DEVICES: "8"}, 0, 8)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
