"""What the doctor says of the jobs of a namespace."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rlhf_cli.doctor.operator_checks import unseen_jobs


def job(name: str, generation: int | None) -> dict[str, Any]:
    status = {} if generation is None else {"observedGeneration": generation}
    meta = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": meta, "status": status}


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([], "ok: no job in research yet, so nothing tells whether an operator serves it"),
        ([job("one", 1)], "ok: 1 job in research, each looked at"),
        ([job("one", 1), job("two", 3)], "ok: 2 jobs in research, each looked at"),
        ([job("one", 1), job("late", None)], "error: no operator looks at late in research"),
    ],
)
def test_jobs_tell_whether_an_operator_serves_their_namespace(
    jobs: list[dict[str, Any]], said: str
) -> None:
    async def listed(*_: object, everywhere: bool) -> list[dict[str, Any]]:
        return jobs

    look = SimpleNamespace(namespace="research", listed=listed)
    (finding,) = asyncio.run(unseen_jobs(cast(Any, look)))
    assert f"{finding.level}: {finding.found}" == said
