"""What to tell about a run that did not succeed: which stage, why, where to look, what to do."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import ExitCode
from rlhf_api.status import JobStatus, StageStatus
from rlhf_operator.outcome import REASONS

from rlhf_cli.failures import FAILED
from rlhf_cli.figures import TITLES
from rlhf_cli.program import program
from rlhf_cli.run_folder import RunFolder

LOG_LINES: Final = 15
ADVICE: Final[dict[int, str]] = {
    ExitCode.CONFIGURATION: "Correct the manifest or the data, then run the same command again.",
    ExitCode.CHECKPOINT: "A checkpoint is damaged or does not fit; see the message for which one.",
    ExitCode.DIVERGED: "Where it names a reward, mend its function or endpoint; else a lower "
    "learningRate, more warm-up or (PPO) a larger kl.coef may help.",
    ExitCode.TRANSIENT: "This may pass: run the same command again.",
    137: "Killed, most likely for memory: a lower microBatchSize needs less.",
}
KEPT: Final = "Finished stages are kept: the same command goes on after them."


def explain(job: RLHFJob, folder: RunFolder) -> tuple[list[str], int]:
    """Lines for the user and the exit code."""
    status = job.status or JobStatus()
    stages = status.every_stage()
    failed = [(name, stage) for name, stage in stages.items() if stage.phase == "Failed"]
    if not failed:
        return _unfinished(status, stages), FAILED
    name, stage = failed[0]
    code = exit_code(job, folder, name, stage)
    lines = [
        f"{program()}: {TITLES.get(name, name)} failed: "
        f"{stage.reason or 'Error'} (exit code {code})"
    ]
    lines += [f"  {line}" for line in (stage.message or "").splitlines()]
    lines += _log_lines(folder, job, name, stage)
    return [*lines, ADVICE.get(code, ""), KEPT] if code in ADVICE else [*lines, KEPT], code


def exit_code(job: RLHFJob, folder: RunFolder, name: str, stage: StageStatus) -> int:
    """The trainer's own exit code: from the status, what its pods said, or the reason."""
    if stage.ended and stage.ended.exit_code:
        return stage.ended.exit_code
    codes = [result.exit_code for result in folder.results(job, name, stage.attempt)]
    told = [code for code in codes if code not in (ExitCode.DONE, ExitCode.TERMINATED)]
    by_reason = [code for code, reason in REASONS.items() if reason == stage.reason]
    return next(iter(told + by_reason), FAILED)


def last_lines(log: Path, count: int) -> list[str]:
    """The end of a log; empty where there is none."""
    try:
        with log.open(encoding="utf-8", errors="replace") as stream:
            return [line.rstrip() for line in deque(stream, maxlen=count)]
    except OSError:
        return []


def _log_lines(folder: RunFolder, job: RLHFJob, name: str, stage: StageStatus) -> list[str]:
    logs = [pod / "log.txt" for pod in folder.pods(job, name, stage.attempt)]
    found = [log for log in logs if log.is_file()]
    if not found:
        return []
    lines = [f"  | {line}" for line in last_lines(found[0], LOG_LINES)]
    return [f"Last lines of {found[0]}:", *lines]


def _unfinished(status: JobStatus, stages: dict[str, StageStatus]) -> list[str]:
    waiting = [
        f"  {TITLES.get(name, name)}: {stage.phase}{f', {stage.message}' if stage.message else ''}"
        for name, stage in stages.items()
        if stage.phase != "Succeeded"
    ]
    return [f"{program()}: the run is not finished: {status.phase}", *waiting]
