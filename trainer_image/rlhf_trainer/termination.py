"""The termination message: how a run ended, as the operator reads it from the pod's status."""

from __future__ import annotations

from pathlib import Path

from rlhf_api.run import TERMINATION_LIMIT, TERMINATION_LOG, StageResult

from rlhf_trainer.errors import MESSAGE_LENGTH, TrainerError, shortened


def failure(error: TrainerError) -> StageResult:
    """The result of a run that ended as people can understand."""
    return StageResult(
        exit_code=int(error.exit_code),
        reason=error.reason,
        message=shortened(str(error)),
        step=error.step,
    )


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
