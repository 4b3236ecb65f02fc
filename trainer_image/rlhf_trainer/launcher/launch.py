"""`python -m rlhf_trainer launch`: torchrun's own agent, but the pod's exit code is the trainer's.

torchrun exits 1 whatever its workers exited with, and gives them 30 seconds after SIGTERM. Here the
first failing rank's exit code is ours, SIGTERM is passed on while the ranks take the time that the
pod's grace period gives them, and each line of the log names its rank. A pod's only rank needs no
agent: it runs in this process.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from rlhf_api.cpus import usable_cpus

from rlhf_trainer.errors import TrainerError, Transient, first_line
from rlhf_trainer.launcher.rank_lines import RankLines
from rlhf_trainer.quiet import configure_logging
from rlhf_trainer.ranks import cpu_threads
from rlhf_trainer.run_stage import run_stage
from rlhf_trainer.termination import failure, write_termination_message

MEET_WITHIN: Final = 900
"""Seconds that torchrun's agents wait for each other, once all pods are there."""
END_WITHIN: Final = 20
"""Seconds that the other ranks of a pod have once one has failed. They end as their connections
close; one that stands still never does."""


def parser() -> argparse.ArgumentParser:
    """The options, named as torchrun names them."""
    options = argparse.ArgumentParser(prog="rlhf_trainer launch", allow_abbrev=False)
    options.add_argument("--nnodes", type=int, default=1, help="pods of the gang")
    options.add_argument("--node-rank", type=int, default=0, help="index of this pod")
    options.add_argument("--nproc-per-node", type=int, default=1, help="processes in this pod")
    options.add_argument("--master-addr", default="127.0.0.1", help="address of pod 0")
    options.add_argument("--master-port", type=int, default=29500, help="port of the rendezvous")
    options.add_argument("stage_file", help="the stage file")
    return options


def main(arguments: Sequence[str]) -> int:
    """Start the ranks of this pod and wait; the exit code is that of the first one that failed."""
    options = parser().parse_args(arguments)
    if options.nnodes * options.nproc_per_node == 1:
        return run_stage(options.stage_file)
    try:
        return _run_gang(options)
    except TrainerError as error:
        result = failure(error)
        write_termination_message(result)
        print(result.message, file=sys.stderr)
        return result.exit_code


def _run_gang(options: argparse.Namespace) -> int:
    """Wait for the other pods, then run the ranks of this one. Transient where they went away."""
    from torch.distributed import DistError

    from rlhf_trainer.launcher.gathering import gathered

    try:
        with gathered(options.master_addr, options.master_port, options.node_rank, options.nnodes):
            if options.nproc_per_node == 1:
                return _run_only_rank(options)
            pass_signals_on()
            return _run_agent(options)
    except DistError as error:
        raise Transient(f"pods of the gang have lost each other: {first_line(error)}") from None


def _run_only_rank(options: argparse.Namespace) -> int:
    """In this process, with the variables that torchrun would give it."""
    os.environ |= {
        "RANK": str(options.node_rank),
        "WORLD_SIZE": str(options.nnodes),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": options.master_addr,
        "MASTER_PORT": str(options.master_port),
    }
    configure_logging(options.node_rank)
    return run_stage(options.stage_file)


def _run_agent(options: argparse.Namespace) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from rlhf_trainer.launcher.rank_pipes import RankPipes

    lines = RankLines()
    sharing = {**os.environ, "LOCAL_WORLD_SIZE": str(options.nproc_per_node)}
    os.environ["OMP_NUM_THREADS"] = str(cpu_threads(sharing, usable_cpus()))
    config = LaunchConfig(
        min_nodes=options.nnodes,
        max_nodes=options.nnodes,
        nproc_per_node=options.nproc_per_node,
        run_id="rlhf",
        rdzv_backend="static",
        rdzv_endpoint=f"{options.master_addr}:{options.master_port}",
        rdzv_configs={"rank": options.node_rank, "timeout": MEET_WITHIN},
        max_restarts=0,
        signals_to_handle="SIGUSR2",  # never sent: SIGTERM is for the ranks, see below
        shutdown_timeout=END_WITHIN,
        logs_specs=RankPipes(lines),
    )
    command = ["-m", "rlhf_trainer", "run", options.stage_file]
    try:
        with lines:
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        return _exit_code(error)
    return 0


def pass_signals_on() -> None:
    """From now on what would end this process ends its ranks, which may have something to save."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _pass_on)


def _pass_on(*_: Any) -> None:
    """SIGTERM to every rank; the agent goes on waiting for them. Ranks that are only about to be
    started get it a moment later."""
    ranks = _children(os.getpid())
    if not ranks:
        signal.alarm(1)
    for child in ranks:
        try:
            os.kill(child, signal.SIGTERM)
        except ProcessLookupError:
            continue


def _children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def _exit_code(error: Any) -> int:
    """Of the first failure in time; a rank that a signal killed reads 128 + its number."""
    rank, failure = error.get_first_failure()
    code = int(failure.exitcode)
    print(f"rank {rank} ended with {code}", file=sys.stderr)
    return 128 - code if code < 0 else code
