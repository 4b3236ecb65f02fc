"""One rank's run of a stage, from the stage file to the termination message."""

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
from rlhf_api.run import (
    PREPARE,
    TERMINATION_LIMIT,
    TERMINATION_LOG,
    StageResult,
    StageRun,
)

from rlhf_trainer.errors import (
    MESSAGE_LENGTH,
    ConfigurationError,
    PeerLost,
    Terminated,
    TrainerError,
    Transient,
    first_line,
    shortened,
)

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
    if os.environ.get("RANK", "0") == "0" or result.exit_code not in (0, 143):
        write_termination_message(result, gate_metric)
    if result.exit_code != 0:
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


def failure(error: TrainerError) -> StageResult:
    """The result of a run that ended as people can understand."""
    return StageResult(
        exit_code=int(error.exit_code),
        reason=error.reason,
        message=shortened(str(error)),
        step=error.step,
    )


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


def write_termination_message(result: StageResult, gate_metric: str | None = None) -> None:
    """Where the kubelet reads it. `gate_metric`: the metric that is not to be missing."""
    text = _fitting(result, gate_metric)
    path = Path(TERMINATION_LOG)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _fitting(result: StageResult, gate_metric: str | None) -> str:
    """JSON that a kubelet does not cut, which would make it unreadable.

    The end of the message gives way first, then metrics from the least important on; last the
    digests that stages are held to.
    """
    short = result
    for left_out in ((), ("sources",)):
        shown = result.model_copy(update={name: {} for name in left_out})
        for length in (MESSAGE_LENGTH, MESSAGE_LENGTH // 2, MESSAGE_LENGTH // 4):
            short = shown.model_copy(update={"message": shortened(shown.message, length)})
            if _fits(short):
                return _json(short)
        bare = short.model_copy(update={"metrics": {}})
        if _fits(bare):
            ranked = sorted(result.metrics, key=lambda name: _importance(name, gate_metric))
            return _json(_with_metrics(bare, {name: result.metrics[name] for name in ranked}))
    return _json(short.model_copy(update={"metrics": {}}))


def _importance(name: str, gate_metric: str | None) -> tuple[bool, bool, str]:
    """The gate's own first, as nothing goes on without it; then what the result is judged by."""
    return name != gate_metric, not name.startswith("eval/"), name


def _with_metrics(bare: StageResult, metrics: dict[str, float]) -> StageResult:
    """With each of the metrics that there is still room for."""
    for name, value in metrics.items():
        more = bare.model_copy(update={"metrics": {**bare.metrics, name: value}})
        bare = more if _fits(more) else bare
    return bare


def _fits(result: StageResult) -> bool:
    return len(_json(result).encode()) <= TERMINATION_LIMIT


def _json(result: StageResult) -> str:
    return result.model_dump_json(by_alias=True, exclude_none=True)
