"""Jobs, statuses and clusters for tests, built by chaining."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE, StageResult
from rlhf_api.status import CheckpointRef, JobStatus, StageStatus
from rlhf_operator.observed import Attempt, Observed, Pod, PodPhase, Progress
from rlhf_operator.plan import (
    Action,
    Assessment,
    BeginAttempt,
    CreateChildren,
    DeleteChildren,
    assess,
    plan,
)
from rlhf_operator.status import next_status

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
UID = "0a1b2c3d-0000-4000-8000-000000000000"

MANIFEST: dict[str, Any] = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "tiny", "uid": UID},
    "spec": {
        "model": {"source": "models/base"},
        "stages": {
            "sft": {"data": {"source": "data/sft.jsonl"}},
            "reward": {"data": {"source": "data/pairs.jsonl"}},
            "ppo": {"data": {"source": "data/prompts.jsonl"}},
            "dpo": {"data": {"source": "data/pairs.jsonl"}},
        },
    },
}


class JobBuilder:
    """`a_job().with_spec("stages.ppo.kl.coef", 0.1).without("dpo").build()`."""

    def __init__(self) -> None:
        self._manifest = copy.deepcopy(MANIFEST)

    def with_spec(self, path: str, value: Any) -> JobBuilder:
        return self._set(["spec", *path.split(".")], value)

    def with_annotation(self, name: str, value: str) -> JobBuilder:
        return self._set(["metadata", "annotations", name], value)

    def named(self, name: str) -> JobBuilder:
        return self._set(["metadata", "name"], name)

    def without(self, *stages: str) -> JobBuilder:
        for stage in stages:
            del self._manifest["spec"]["stages"][stage]
        return self

    def only(self, *stages: str) -> JobBuilder:
        return self.without(*(name for name in MANIFEST["spec"]["stages"] if name not in stages))

    def build(self) -> RLHFJob:
        return RLHFJob.parse(self._manifest)

    def _set(self, path: list[str], value: Any) -> JobBuilder:
        place = self._manifest
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
        return self


def a_job() -> JobBuilder:
    return JobBuilder()


class World:
    """A job in a cluster that does nothing by itself: the test says what becomes of the pods."""

    def __init__(self, job: RLHFJob, now: datetime = NOON) -> None:
        self.job = job
        self.now = now
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.progress: dict[tuple[str, int], Progress] = {}
        self.fingerprints: dict[str, str] = {}
        self.default_image = "trainer:1"

    @property
    def status(self) -> JobStatus:
        assert self.job.status is not None
        return self.job.status

    def stage(self, name: str) -> StageStatus:
        found = self.status.prepare if name == PREPARE else self.status.stages[name]
        assert found is not None
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(item for item in self.status.conditions if item.type == kind)
        return found.status, found.reason

    def observed(self) -> Observed:
        return Observed(
            tuple(self.attempts.values()),
            dict(self.progress),
            dict(self.fingerprints),
            image=self.default_image,
        )

    def assess(self, observed: Observed) -> Assessment:
        return assess(self.job, observed, self.now)

    def plan(self) -> list[Action]:
        return plan(self.assess(self.observed()))

    def reconcile(self) -> list[Action]:
        """A pass, acted on as by a cluster: a delete starts termination, a create makes pods."""
        actions = self.plan()
        status = next_status(self.assess(self.observed()), actions)
        for action in actions:
            self.act(action)
        self.job = self.job.model_copy(update={"status": status})
        return actions

    def act(self, action: Action) -> None:
        if isinstance(action, CreateChildren):
            key = (action.stage, action.attempt)
            self.attempts.setdefault(key, Attempt(*action, pods=self._pods(action)))
        elif isinstance(action, DeleteChildren):
            key = (action.stage, action.attempt)
            if self.attempts[key].is_live:
                self.attempts[key] = self.attempts[key]._replace(is_terminating=True)
            else:
                del self.attempts[key]

    def _pods(self, action: CreateChildren) -> tuple[Pod, ...]:
        return (Pod(f"tiny-{action.stage}-{action.attempt}-0", 0),)

    def settle(self) -> list[Action]:
        """Passes until nothing is left to do; all that was done."""
        done: list[Action] = []
        for _ in range(20):
            actions = self.reconcile()
            done += actions
            if not actions:
                return done
        raise AssertionError("the plan never comes to rest")

    def after(self, **delta: float) -> World:
        self.now += timedelta(**delta)
        return self

    def edit(self, job: JobBuilder) -> World:
        """The user changes the job; the status stays."""
        self.job = job.build().model_copy(update={"status": self.job.status})
        return self

    def live(self, stage: str) -> list[Attempt]:
        return [a for a in self.attempts.values() if a.stage == stage and a.is_live]

    def current(self, stage: str) -> Attempt:
        return self.attempts[stage, self.stage(stage).attempt]

    def becomes(self, stage: str, phase: PodPhase, **pod: Any) -> World:
        """What happens to every pod of the newest attempt."""
        attempt = self.current(stage)
        pods = tuple(item._replace(phase=phase, **pod) for item in attempt.pods)
        self.attempts[stage, attempt.number] = attempt._replace(pods=pods)
        return self

    def runs(self, *stages: str) -> World:
        for stage in stages:
            self.becomes(stage, "Running")
        return self

    def succeeds(self, *stages: str, **metrics: float) -> World:
        for stage in stages:
            attempt = self.current(stage)
            result = a_result(attempt, self.job, metrics)
            self.becomes(stage, "Succeeded", exit_code=0, result=result)
            self._closes(stage, "Complete")
        self.settle()
        return self

    def fails(self, stage: str, code: int, **pod: Any) -> World:
        self.becomes(stage, "Failed", exit_code=code, **pod)
        self._closes(stage, "Failed")
        self.reconcile()
        return self

    def vanishes(self, stage: str) -> World:
        del self.attempts[stage, self.stage(stage).attempt]
        return self

    def gone(self) -> World:
        """Pods that were told to end have ended."""
        self.attempts = {k: a for k, a in self.attempts.items() if not a.is_terminating}
        return self

    def _closes(self, stage: str, condition: Any) -> None:
        key = (stage, self.stage(stage).attempt)
        self.attempts[key] = self.attempts[key]._replace(condition=condition)

    def up_to(self, *stages: str) -> World:
        """Everything before has succeeded, and these run."""
        self.settle()
        for name in self.order():
            if all((s, self.stage(s).attempt) in self.attempts for s in stages):
                break
            if name not in stages and (name, self.stage(name).attempt) in self.attempts:
                self.succeeds(name)
        self.runs(*stages).settle()
        return self

    def order(self) -> Iterator[str]:
        yield PREPARE
        yield from self.job.spec.stages.present()

    def finish(self) -> World:
        """Everything succeeds."""
        self.settle()
        for _ in range(10):
            for attempt in [a for a in self.attempts.values() if a.is_live]:
                self.succeeds(attempt.stage)
            if self.status.phase == "Succeeded":
                return self
        raise AssertionError(f"stuck: {self.status}")


def a_result(attempt: Attempt, job: RLHFJob, metrics: dict[str, float]) -> StageResult:
    """What a trainer that did its work says."""
    if attempt.stage == PREPARE:
        from rlhf_api.sources import named_sources

        # the digest of a source is that of its content: here, its file name
        names = {ref.field: ref.value.source.split("/")[-1] for ref in named_sources(job.spec)}
        digests = {field: f"sha256:{name}" for field, name in names.items()}
        return StageResult(exit_code=0, reason="Done", sources=digests)
    uri = f"tiny/{attempt.stage}-{attempt.hash[7:19]}/attempt-{attempt.number}/output"
    digest = f"sha256:{attempt.hash[7:]}-{attempt.number}"
    checkpoint = CheckpointRef(uri=uri, digest=digest)
    return StageResult(exit_code=0, reason="Done", checkpoint=checkpoint, metrics=metrics)


def begun(actions: list[Action]) -> list[str]:
    """Stages that a plan begins."""
    return [action.stage for action in actions if isinstance(action, BeginAttempt)]
