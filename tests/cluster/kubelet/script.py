"""Pods that are played from a script: no process, no thread, a timer each."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from rlhf_api.run import PREPARE, StageResult
from rlhf_api.status import CheckpointRef
from rlhf_operator.names import ANNOTATION_HASH, LABEL_ATTEMPT, LABEL_JOB, LABEL_STAGE, short

from cluster.kubelet.runtime import Host, NotReady, Object
from cluster.kubelet.status import Exit

SIGTERM_CODE = 143
SIGKILL_CODE = 137


class Script(NamedTuple):
    """What one pod does. Times in seconds."""

    start_s: float = 0.0  # from being bound to running
    run_s: float | None = 0.0  # from running to the end; None: until it is told to end
    exit_code: int = 0
    message: str = ""  # termination message
    end: Literal["Exit", "OOMKilled", "Evicted", "NodeLost"] = "Exit"
    """After `run_s`; a pod on a node that is lost then goes on until it is told to end."""
    term_s: float | None = 0.0  # what it takes to end after SIGTERM; None: it ignores it
    term_code: int = SIGTERM_CODE
    waiting: str = ""  # never starts, for this reason: ImagePullBackOff, …
    log: str = ""  # written at once


Play = Callable[[Object], Script]
"""Chooses the script of a pod, which is given as the API server has it."""


class Scripted:
    """The runtime that plays scripts."""

    def __init__(self, play: Play) -> None:
        self._play = play

    async def create(self, pod: Object, host: Host) -> ScriptedContainer:
        """Waits as the script says."""
        script = self._play(pod)
        if script.waiting:
            raise NotReady(script.waiting, f"the script says {script.waiting}")
        if script.start_s:
            await asyncio.sleep(script.start_s)
        return ScriptedContainer(script, pod, host)


class ScriptedContainer:
    """A timer."""

    def __init__(self, script: Script, pod: Object, host: Host) -> None:
        self.started_at = time.time()
        self._script = script
        self._pod = pod
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Exit] = self._loop.create_future()
        self._timers: list[asyncio.TimerHandle] = []
        if script.run_s == 0 and script.end == "Exit":
            self._play_end()
        elif script.run_s is not None:
            self._after(script.run_s, self._play_end)

    async def wait(self) -> Exit:
        """How it ended, once it has."""
        return await asyncio.shield(self._end)

    def stop(self, grace: float) -> None:
        """Ends it as the script says, or after the grace period."""
        term_s = self._script.term_s
        if term_s is not None and term_s <= grace:
            self._after(term_s, lambda: self.finish(self._script.term_code, self._script.message))
        else:
            self._after(grace, self.kill)

    def kill(self, reason: str = "", rank: int | None = None) -> None:
        """Ends it at once. Of several ranks, the first that is killed takes the pod along."""
        self.finish(SIGKILL_CODE, reason=reason)

    def log(self) -> str:
        """All of it, from the start."""
        return self._script.log

    def close(self) -> None:
        """No timer is left."""
        for timer in self._timers:
            timer.cancel()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, act))

    def _play_end(self) -> None:
        match self._script.end:
            case "Exit":
                self.finish(self._script.exit_code, self._script.message)
            case "OOMKilled":
                self.kill("OOMKilled")
            case "Evicted":
                self._host.evict(self._pod)
            case "NodeLost":
                self._host.lose_node(self._pod["spec"]["nodeName"])

    def finish(self, code: int, message: str = "", reason: str = "") -> None:
        """Ends it at once; called where its kubelet runs."""
        self.close()
        if not self._end.done():
            end = Exit(code, message, reason, self.started_at, time.time())
            self._end.set_result(end)


def succeed(pod: Object) -> Script:
    """Every pod ends well at once."""
    return Script(message=trained(pod) if index_of(pod) == 0 else "")


def trained(pod: Object, **metrics: float) -> str:
    """The termination message of a stage that has trained; a function of the stage's input hash."""
    meta = pod["metadata"]
    stage, attempt = meta["labels"][LABEL_STAGE], meta["labels"][LABEL_ATTEMPT]
    wanted = meta["annotations"][ANNOTATION_HASH]
    result: dict[str, Any] = {"exit_code": 0, "reason": "Done", "step": 1, "metrics": metrics}
    if stage != PREPARE:
        folder = f"{meta['labels'][LABEL_JOB]}/{stage}-{short(wanted)}/attempt-{attempt}/output"
        result["checkpoint"] = CheckpointRef(uri=folder, digest=output_digest(wanted))
    return StageResult(**result).model_dump_json(by_alias=True, exclude_none=True)


def output_digest(input_hash: str) -> str:
    """What training on these inputs would yield, were it a hash."""
    return f"sha256:{hashlib.sha256(input_hash.encode()).hexdigest()}"


def index_of(pod: Object) -> int:
    """Completion index in the pod's Job; 0 for a pod without one."""
    labels = pod["metadata"].get("labels", {})
    return int(labels.get("batch.kubernetes.io/job-completion-index", 0))
