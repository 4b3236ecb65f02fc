"""The one validator, for CLI, admission and reconcile: path, what is wrong, what is allowed."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rlhf_api.fields import path_text
from rlhf_api.job import JobSpec, RLHFJob
from rlhf_api.partial import readable
from rlhf_api.problems import InvalidJob, Problem
from rlhf_api.rules import broken_rules
from rlhf_api.wording import error_path, guessed, problems_of

__all__ = ["InvalidJob", "Problem", "kept_job", "parse_job"]


def parse_job(obj: Any) -> RLHFJob:
    """The job in a decoded manifest, or InvalidJob with every problem at once."""
    _check_mapping(obj, "manifest")
    try:
        job = RLHFJob.parse(obj)
    except ValidationError as error:
        raise InvalidJob(_all_problems(error, obj)) from None
    if problems := broken_rules(job.spec):
        raise InvalidJob(problems)
    return job


def kept_job(obj: Any) -> RLHFJob:
    """The job in an object that was accepted once, with its status, or InvalidJob.

    Rules between fields are not asked again: those of then, or of another version, let it pass.
    """
    _check_mapping(obj, "object")
    try:
        return RLHFJob.parse(obj)
    except ValidationError as error:
        problems = problems_of(error.errors(include_url=False), RLHFJob, obj)
        raise InvalidJob(problems) from None


def _check_mapping(obj: Any, what: str) -> None:
    if not isinstance(obj, dict):
        raise InvalidJob([Problem(what, "is not a mapping", "apiVersion, kind, metadata and spec")])


def _all_problems(error: ValidationError, obj: dict[str, Any]) -> list[Problem]:
    """What pydantic found, and what the rules say of the rest."""
    errors = error.errors(include_url=False)
    problems = problems_of(errors, RLHFJob, obj)
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        return problems
    paths = [error_path(item, obj) for item in errors] + list(guessed(errors, RLHFJob, obj))
    broken = [path[1:] for path in paths if path[:1] == ("spec",)]
    known = {problem.path for problem in problems} | {path_text(path) for path in paths}
    further = broken_rules(readable(JobSpec, spec, broken))
    return problems + [problem for problem in further if problem.path not in known]
