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

__all__ = ["InvalidJob", "Problem", "parse_job"]


def parse_job(obj: Any) -> RLHFJob:
    """The job in a decoded manifest, or InvalidJob with every problem at once."""
    if not isinstance(obj, dict):
        raise InvalidJob(
            [Problem("manifest", "is not a mapping", "apiVersion, kind, metadata and spec")]
        )
    try:
        job = RLHFJob.parse(obj)
    except ValidationError as error:
        raise InvalidJob(_all_problems(error, obj)) from None
    if problems := broken_rules(job.spec):
        raise InvalidJob(problems)
    return job


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
