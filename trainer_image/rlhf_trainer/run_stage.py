"""One rank's run of a stage, from the stage file to its exit code."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError
from rlhf_api.run import PREPARE, ExitCode, StageResult, StageRun

from rlhf_trainer.errors import (
    ConfigurationError,
    PeerLost,
    Terminated,
    TrainerError,
    Transient,
    first_line,
    shortened,
)
from rlhf_trainer.termination import failure, write_termination_message

LOST_PEER_SIGNS: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
)
NCCL_ERROR: Final = "NCCL error"
NCCL_PEER: Final = "ncclRemoteError"
NCCL_LAST: Final = "Last error:"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
LESS_MEMORY: Final = (
    "Take a smaller microBatchSize, gradientCheckpointing: true, a higher zero.stage, "
    "zero.offload: cpu, lora, or more GPUs; docs/guides/memory.md has the arithmetic"
)
QUIET: Final = (ExitCode.DONE, ExitCode.TERMINATED)
"""Ends that every rank comes to: rank 0 alone tells of them."""
log = logging.getLogger("rlhf_trainer")


def run_stage(stage_file: str) -> int:
    """Run what the stage file describes and leave the termination message. Never raises."""
    gate_metric, said = None, ""
    try:
        run = read_stage_file(Path(stage_file))
        gate_metric = _gate_metric(run)
        result = _stage(run)
    except TrainerError as error:
        result, said = failure(error), str(error)
    except Exception as error:
        result = _unexpected(error)
    if os.environ.get("RANK", "0") == "0" or result.exit_code not in QUIET:
        write_termination_message(result, gate_metric)
    if result.exit_code != ExitCode.DONE:
        log.error("%s: %s", result.reason, said or result.message)  # a log has room for all of it
    return result.exit_code


def read_stage_file(path: Path) -> StageRun:
    """The stage file, or ConfigurationError with what is wrong in it."""
    try:
        return StageRun.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{path}: {where}: {first['msg']}") from None


def _gate_metric(run: StageRun) -> str | None:
    gate = None if run.stage == PREPARE else run.config.gate
    return gate.metric if gate else None


def _stage(run: StageRun) -> StageResult:
    if run.stage == PREPARE:
        from rlhf_trainer.prepare import prepare

        return prepare(run)
    return _train(run)


def _train(run: StageRun) -> StageResult:
    from rlhf_trainer import stages
    from rlhf_trainer.guards import with_one_rollback
    from rlhf_trainer.session import Session, seed_everything

    session = Session.open(run)
    train = stages.load(run.stage)
    gc.freeze()  # libraries are 400,000 objects, a quarter of a second of each full collection

    def attempt() -> StageResult:
        seed_everything(run.seed)
        return train(session)

    together = False
    try:
        result = with_one_rollback(attempt)
        session.finish()
        together = True
        return result
    except Terminated:
        session.finish()
        together = True
        raise
    finally:
        session.close(together)


def _unexpected(error: Exception) -> StageResult:
    """Ours to explain: the log gets the whole traceback. A lost peer or a full disk is no bug."""
    if _is_of_nccl_here(error):
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines()]
        told = [line for line in lines if line and line != NCCL_LAST]
        return failure(Transient(f"NCCL failed: {told[-1]}"))
    if _is_lost_peer(error):
        return failure(PeerLost(f"another rank was lost: {str(error).splitlines()[0]}"))
    if isinstance(error, OSError) and error.errno in FULL:
        return failure(Transient(str(error)))
    traceback.print_exc()
    message = f"{type(error).__name__}: {error}"
    if _is_out_of_memory(error):  # torch's own advice is long, and about its allocator
        tried = ". ".join(first_line(error).split(". ")[:2])
        message = f"{type(error).__name__}: {tried}. {LESS_MEMORY}"
    return StageResult(exit_code=1, reason=type(error).__name__, message=shortened(message))


def _is_out_of_memory(error: Exception) -> bool:
    return "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError)


def _is_of_nccl_here(error: Exception) -> bool:
    """Whether NCCL met an error of this node's, as of memory that an InfiniBand card may not use:
    its text ends with what it was."""
    text = str(error)
    return text.startswith(NCCL_ERROR) and NCCL_PEER not in text


def _is_lost_peer(error: Exception) -> bool:
    """gloo and NCCL say it in words alone."""
    if "torch" not in sys.modules:
        return False
    from torch.distributed import DistError

    text = str(error)
    return isinstance(error, DistError) or any(sign in text for sign in LOST_PEER_SIGNS)
