"""Invariants of the plan under events in any order: I1, I2, I5, I7 of the reliability rules."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import yaml
from builders import JobBuilder, World, a_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE, StageRun
from rlhf_operator.inputs import annotation
from rlhf_operator.observed import Observed
from rlhf_operator.plan import Action, BeginAttempt, CreateChildren, DeleteChildren, plan
from rlhf_operator.render import render
from rlhf_operator.status import next_status
from rlhf_operator.storage import moved_storage
from rlhf_operator.times import read

STAGES = (PREPARE, "sft", "reward", "ppo", "dpo")
LAG = timedelta(seconds=5)
"""By less than this may a view of the cluster lag behind."""

EDITS: dict[str, Callable[[], JobBuilder]] = {
    "as it was": a_job,
    "another ppo": lambda: a_job().with_spec("stages.ppo.kl", {"coef": 0.5}),
    "another sft": lambda: a_job().with_spec("stages.sft.learningRate", 1e-3),
    "other data": lambda: a_job().with_spec("stages.sft.data.source", "data/other.jsonl"),
    "moved data": lambda: a_job().with_spec("stages.sft.data.source", "moved/sft.jsonl"),
    "more nodes": lambda: a_job().with_spec("resources", {"nodes": 2}),
    "suspended": lambda: a_job().with_spec("suspend", True),
    "no dpo": lambda: a_job().without("dpo"),
    "no sft": lambda: a_job().without("sft"),
    "retry": lambda: a_job().with_annotation("rlhf.dev/retry-sft", "1"),
    "gate": lambda: a_job().with_spec("stages.reward.gate", {"approval": True}),
    "expiry": lambda: a_job().with_spec("ttlSecondsAfterFinished", 60),
    "expiry at once": lambda: a_job().with_spec("ttlSecondsAfterFinished", 0),
    "moved storage": lambda: a_job().with_spec("checkpoints", {"existingClaim": "other"}),
}
"""Gates and storage last: an edit of a finished job's storage is refused, and runs nothing."""


class Checked(World):
    """A world that holds every action against the invariants, at the moment it is done."""

    def __init__(self, job: RLHFJob) -> None:
        super().__init__(job)
        self.highest = dict.fromkeys(STAGES, 0)
        self.variant: Callable[[], JobBuilder] = a_job
        self.past: list[tuple[datetime, Observed]] = []

    def started(self, variant: str, finished: int) -> Checked:
        """So many stages of a variant of the job have succeeded."""
        self.variant = EDITS[variant]
        for stage in STAGES[:finished]:
            self.rests()
            for attempt in self.live(stage):
                self._ends((stage, attempt.number), 0, disrupted=False)
        self.rests()
        return self

    def act(self, action: Action) -> None:
        if isinstance(action, CreateChildren):
            self._may_create(action)
        elif isinstance(action, DeleteChildren):
            self._may_delete(action)
            if (action.stage, action.attempt) not in self.attempts:
                return
        super().act(action)
        for stage in STAGES:
            assert len(self.live(stage)) <= 1, f"two attempts of {stage} live at once"

    def _may_create(self, action: CreateChildren) -> None:
        status = self.stage(action.stage)
        assert action.attempt == status.attempt, "children before the status names them"
        assert (action.hash, action.settings) == (status.hash, status.settings)
        assert not self._meets_older_pods(action), "children while others live"
        assert not self.job.spec.suspend
        self._has_its_inputs(action)

    def _may_delete(self, action: DeleteChildren) -> None:
        if action.reason == "Expired":
            ended = self.stage(action.stage).ended
            assert ended is not None, "children go before their end is written down"
            assert ended.attempt == action.attempt
            assert self.now >= read(ended.time), "children go before their time"

    def _has_its_inputs(self, action: CreateChildren) -> None:
        objects = {item["kind"]: item for item in render(self.job, *action)}
        run = StageRun.model_validate(yaml.safe_load(objects["ConfigMap"]["data"]["stage.yaml"]))
        if action.stage == PREPARE:
            return
        for role, parent in self.job.spec.stages.parents(action.stage).items():
            digests = {item.checkpoint.digest for item in self.stage(parent).finished}
            assert run.inputs[role].digest in digests

    def reconcile(self, crash_after: int | None = None) -> list[Action]:
        """One pass; a crash does some of the actions, and writes no status."""
        before = self.job.status
        actions = self.plan()
        if moved_storage(self.job):
            assert actions == []
        for action in actions:
            if isinstance(action, BeginAttempt):
                self._may_begin(action)
        if self.is_stale and any(self._meets_older_pods(action) for action in actions):
            return actions  # the cluster asks the API server for live pods, and drops the pass
        for action in actions[:crash_after]:
            if not isinstance(action, BeginAttempt):
                self.act(action)
        if crash_after is None:
            status = next_status(self.assess(self.observed_before), actions)
            self.job = self.job.model_copy(update={"status": status})
            self._nothing_is_lost(before)
        return actions

    def plan(self) -> list[Action]:
        self.is_stale = False
        self.observed_before = self.observed()
        self.past.append((self.now, self.observed_before))
        return super().plan()

    def looks_back(self, steps: int) -> None:
        """A pass that sees the cluster as it was, by less than what a view may lag behind."""
        recent = [seen for at, seen in self.past if timedelta() <= self.now - at < LAG]
        if not recent or self.job.status is None:
            return
        seen = recent[-1 - steps % len(recent)]
        self.plan = lambda: self._plan_on(seen)  # type: ignore[method-assign]
        try:
            self.reconcile()
        finally:
            del self.plan

    def _plan_on(self, seen: Observed) -> list[Action]:
        self.is_stale, self.observed_before = True, seen
        return plan(self.assess(seen))

    def _meets_older_pods(self, action: Action) -> bool:
        others = [a for a in self.live(action.stage) if a.number != action.attempt]
        return isinstance(action, CreateChildren) and bool(others)

    def _may_begin(self, action: BeginAttempt) -> None:
        ended = self.stage(action.stage).ended if self.job.status else None
        for live in self.live(action.stage):
            assert self.is_stale, "a successor while the attempt lives"
            assert live.is_terminating or (ended and ended.attempt >= live.number)
        gate = getattr(self.job.spec.stages.reward, "gate", None)
        if action.stage == "ppo" and gate and gate.approval:
            given = annotation(self.job, "rlhf.dev/approve-reward")
            assert given in {run.hash[7:19] for run in self.stage("reward").finished}
        assert action.attempt == self.highest[action.stage] + 1, "numbers rise by one"
        if self.job.status and action.stage in self.job.status.stages:
            finished = {run.hash for run in self.stage(action.stage).finished}
            assert action.hash not in finished, "a finished stage runs again"

    def _nothing_is_lost(self, before: Any) -> None:
        for stage in STAGES:
            status = self.status.prepare if stage == PREPARE else self.status.stages.get(stage)
            if status is None:
                continue
            assert status.attempt in (self.highest[stage], self.highest[stage] + 1)
            if status.attempt > max(1, self.highest[stage]):
                assert status.ended is not None, "a successor without an end"
                assert status.ended.attempt == status.attempt - 1
            self.highest[stage] = status.attempt
            old = before.stages.get(stage) if before else None
            known = {run.hash for run in status.finished}
            assert not old or {run.hash for run in old.finished} <= known, "a result is lost"

    def happens(self, event: str, stage: str, value: int) -> None:
        """Something outside our hands, if it can happen now."""
        if event == "edit":
            self.variant = EDITS[list(EDITS)[value % len(EDITS)]]
            self.edit(self.variant())
        elif event == "approve":
            digest = (self.job.status and self.stage("reward").hash) or "sha256:"
            self.edit(self.variant().with_annotation("rlhf.dev/approve-reward", digest[7:19]))
        elif event == "retry":
            self.asks_again(self.variant())
        elif event == "stale":
            self.looks_back(value)
        elif event == "queue":
            self._queue(stage)
        elif event == "time":
            self.after(seconds=value - 5)
        elif event == "crash":
            self.reconcile(crash_after=value % 4)
        elif event == "terminated":
            self.gone()
        elif event != "pass" and self.live(stage):
            self._to_pods(event, stage, value)

    def asks_again(self, job: JobBuilder) -> None:
        """A person wants another try of whatever has failed."""
        for stage in STAGES if self.job.status else ():
            status = self.status.prepare if stage == PREPARE else self.status.stages.get(stage)
            if status:
                job.with_annotation(f"rlhf.dev/retry-{stage}", str(status.attempt))
        self.edit(job)

    def _queue(self, stage: str) -> None:
        """A queue takes an attempt's devices back, or gives them again."""
        for key, attempt in self.attempts.items():
            if key[0] != stage or attempt.has_ended or attempt.is_terminating:
                continue
            create = CreateChildren(stage, attempt.number, attempt.hash, attempt.settings)
            pods = self._pods(create) if attempt.is_suspended else ()
            suspended = not attempt.is_suspended
            self.attempts[key] = attempt._replace(pods=pods, is_suspended=suspended)

    def _to_pods(self, event: str, stage: str, value: int) -> None:
        attempt = self.live(stage)[0]
        key = (attempt.stage, attempt.number)
        if event == "vanish":
            del self.attempts[key]
        elif event in ("run", "lost"):
            phase = "Running" if event == "run" else "Unknown"
            pods = tuple(pod._replace(phase=phase) for pod in attempt.pods)
            self.attempts[key] = attempt._replace(pods=pods)
        elif event == "succeed":
            self._ends(key, 0, disrupted=False)
        else:
            code = (1, 64, 65, 66, 75, 137, 143)[value % 7]
            self._ends(key, code, disrupted=event == "disrupt")

    def _ends(self, key: tuple[str, int], code: int, *, disrupted: bool) -> None:
        from builders import a_result

        attempt = self.attempts[key]
        result = a_result(attempt, self.job, {}) if code == 0 else None
        phase = "Succeeded" if code == 0 else "Failed"
        pods = tuple(
            pod._replace(phase=phase, exit_code=code, result=result, is_disrupted=disrupted)
            for pod in attempt.pods
        )
        condition = "Complete" if code == 0 else "Failed"
        self.attempts[key] = attempt._replace(pods=pods, condition=condition)

    def rests(self) -> None:
        """Without events, passes come to rest, and then neither do nor write anything."""
        for _ in range(20):
            if not self.reconcile():
                break
        else:
            raise AssertionError("passes never come to rest")
        before = self.job
        assert self.reconcile() == []
        assert self.job == before

    def ends_well(self) -> None:
        """Once nothing goes wrong any more, the job ends as if nothing ever had."""
        for _ in range(60):
            self.asks_again(a_job())
            self.gone().after(minutes=10)
            self.rests()
            if self.status.phase == "Succeeded":
                return
            for stage in {a.stage for a in self.attempts.values() if a.is_suspended}:
                self._queue(stage)
            for attempt in list(self.attempts.values()):
                if attempt.is_live and not attempt.is_terminating:
                    self._ends((attempt.stage, attempt.number), 0, disrupted=False)
        raise AssertionError(f"stuck: {[(s, self.stage(s).reason) for s in STAGES]}")


EVENT = st.tuples(
    st.sampled_from(
        [
            "pass",
            "pass",
            "run",
            "succeed",
            "succeed",
            "fail",
            "disrupt",
            "vanish",
            "lost",
            "terminated",
            "time",
            "crash",
            "edit",
            "approve",
            "retry",
            "stale",
            "stale",
            "queue",
        ]
    ),
    st.sampled_from(STAGES),
    st.integers(0, 400),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    st.sampled_from(list(EDITS)[:-1]),
    st.integers(0, 3),
    st.lists(st.tuples(EVENT, st.integers(0, 3)), max_size=40),
)
def test_invariants_hold_under_events_in_any_order(
    variant: str, finished: int, events: list[tuple[tuple[str, str, int], int]]
) -> None:
    world = Checked(EDITS[variant]().build()).started(variant, finished)
    for (event, stage, value), passes in events:
        world.happens(event, stage, value)
        for _ in range(passes):
            world.reconcile()
    world.rests()
    world.ends_well()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(list(EDITS)[:-1]), min_size=1, max_size=6))
def test_edits_of_a_finished_job_run_each_variant_of_a_stage_once(edits: list[str]) -> None:
    world = Checked(a_job().build())
    world.ends_well()
    for name in edits:
        world.edit(EDITS[name]())
        for _ in range(12):
            world.rests()
            for attempt in list(world.attempts.values()):
                if attempt.is_live and not attempt.is_terminating:
                    world._ends((attempt.stage, attempt.number), 0, disrupted=False)
            world.gone()
    world.edit(a_job())
    for _ in range(3):
        world.rests()
        for attempt in [a for a in world.attempts.values() if a.is_live]:
            assert attempt.stage == PREPARE, f"{attempt.stage} was reached before"
            world._ends((attempt.stage, attempt.number), 0, disrupted=False)
    assert world.status.phase == "Succeeded"


def test_a_delete_never_hits_the_attempt_that_is_wanted() -> None:
    world = Checked(a_job().build())
    world.ends_well()
    world.edit(EDITS["another ppo"]())
    for _ in range(10):
        for action in world.reconcile():
            assert not (isinstance(action, DeleteChildren) and action.attempt == 2)
