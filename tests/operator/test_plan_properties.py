"""Invariants of the plan under events in any order: I1, I2, I5, I7 of the reliability rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from builders import JobBuilder, World, a_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE, StageRun
from rlhf_operator.inputs import parents
from rlhf_operator.plan import Action, BeginAttempt, CreateChildren, DeleteChildren
from rlhf_operator.render import render
from rlhf_operator.status import next_status

STAGES = (PREPARE, "sft", "reward", "ppo", "dpo")

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
    "retry": lambda: a_job().with_annotation("rlhf.dev/retry", "please"),
}


class Checked(World):
    """A world that holds every action against the invariants, at the moment it is done."""

    def __init__(self, job: RLHFJob) -> None:
        super().__init__(job)
        self.highest = dict.fromkeys(STAGES, 0)

    def act(self, action: Action) -> None:
        if isinstance(action, CreateChildren):
            self._may_create(action)
        super().act(action)
        for stage in STAGES:
            assert len(self.live(stage)) <= 1, f"two attempts of {stage} live at once"

    def _may_create(self, action: CreateChildren) -> None:
        status = self.stage(action.stage)
        assert action.attempt == status.attempt, "children before the status names them"
        assert (action.hash, action.settings) == (status.hash, status.settings)
        assert not self.live(action.stage), "children while others live"
        assert not self.job.spec.suspend
        self._has_its_inputs(action)

    def _has_its_inputs(self, action: CreateChildren) -> None:
        objects = {item["kind"]: item for item in render(self.job, *action)}
        run = StageRun.model_validate(yaml.safe_load(objects["ConfigMap"]["data"]["stage.yaml"]))
        if action.stage == PREPARE:
            return
        for role, parent in parents(self.job.spec, action.stage).items():
            digests = {item.checkpoint.digest for item in self.stage(parent).finished}
            assert run.inputs[role].digest in digests

    def reconcile(self, crash_after: int | None = None) -> list[Action]:
        """One pass; a crash does some of the actions, and writes no status."""
        before = self.job.status
        actions = self.plan()
        for action in actions:
            if isinstance(action, BeginAttempt):
                self._may_begin(action)
        for action in actions[:crash_after]:
            if not isinstance(action, BeginAttempt):
                self.act(action)
        if crash_after is None:
            status = next_status(self.job, self.observed_before, actions, self.now)
            self.job = self.job.model_copy(update={"status": status})
            self._nothing_is_lost(before)
        return actions

    def plan(self) -> list[Action]:
        self.observed_before = self.observed()
        return super().plan()

    def _may_begin(self, action: BeginAttempt) -> None:
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
            self.highest[stage] = status.attempt
            old = before.stages.get(stage) if before else None
            known = {run.hash for run in status.finished}
            assert not old or {run.hash for run in old.finished} <= known, "a result is lost"

    def happens(self, event: str, stage: str, value: int) -> None:
        """Something outside our hands, if it can happen now."""
        if event == "edit":
            self.edit(EDITS[list(EDITS)[value % len(EDITS)]]())
        elif event == "time":
            self.after(seconds=value - 5)
        elif event == "crash":
            self.reconcile(crash_after=value % 4)
        elif event == "terminated":
            self.gone()
        elif event != "pass" and self.live(stage):
            self._to_pods(event, stage, value)

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
        self.edit(a_job().with_annotation("rlhf.dev/retry", "at the end"))
        for _ in range(60):
            self.gone().after(minutes=10)
            self.rests()
            if self.status.phase == "Succeeded":
                return
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
        ]
    ),
    st.sampled_from(STAGES),
    st.integers(0, 400),
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.lists(st.tuples(EVENT, st.integers(0, 3)), max_size=40))
def test_invariants_hold_under_events_in_any_order(
    events: list[tuple[tuple[str, str, int], int]],
) -> None:
    world = Checked(a_job().build())
    for (event, stage, value), passes in events:
        world.happens(event, stage, value)
        for _ in range(passes):
            world.reconcile()
    world.rests()
    world.ends_well()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(list(EDITS)), min_size=1, max_size=6))
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
