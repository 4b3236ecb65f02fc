"""The one validator, for CLI, admission and reconcile: path, what is wrong, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from rlhf_api.job import JobSpec, RLHFJob


class Problem(NamedTuple):
    """One thing wrong with a manifest."""

    path: str  # spec.stages.ppo.kl.coef
    message: str  # what is wrong
    allowed: str = ""  # what would be right, and what to do

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.allowed})" if self.allowed else "")


class InvalidJob(ValueError):
    """A manifest that was refused, with all that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def parse_job(obj: Any) -> RLHFJob:
    """The job in a decoded manifest, or InvalidJob with every problem at once."""
    try:
        job = RLHFJob.parse(obj)
    except ValidationError as error:
        raise InvalidJob([_problem(item) for item in error.errors()]) from None
    problems = [problem for rule in RULES for problem in rule(job.spec)]
    if problems:
        raise InvalidJob(problems)
    return job


def _problem(item: Any) -> Problem:
    """TODO(helper): plain words for each pydantic error type, with allowed values."""
    return Problem(".".join(str(part) for part in item["loc"]) or "manifest", item["msg"])


def some_stage(spec: JobSpec) -> Iterator[Problem]:
    """A job without stages would do nothing."""
    if not spec.stages.present():
        yield Problem("spec.stages", "no stage is set", "at least one of sft, reward, ppo, dpo")


def ppo_has_reward(spec: JobSpec) -> Iterator[Problem]:
    """PPO needs something to maximise."""
    ppo = spec.stages.ppo
    if ppo and not ppo.rewards and not spec.stages.reward:
        yield Problem(
            "spec.stages.ppo.rewards",
            "there is no reward stage and no reward is named",
            "add spec.stages.reward, or name a model, a function or an http endpoint here",
        )


Rule = Callable[[JobSpec], Iterator[Problem]]
RULES: Final[tuple[Rule, ...]] = (some_stage, ppo_has_reward)
