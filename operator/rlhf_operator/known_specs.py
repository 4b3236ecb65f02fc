"""Jobs as passes read them: a spec is checked once, and its digests are made once (see inputs.py),
for all the passes that an attempt takes. Without that they would be most of a pass.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError
from rlhf_api.job import GROUP, KIND, VERSION, JobSpec, RLHFJob
from rlhf_api.validation import InvalidJob, parse_job

REMEMBERED: Final = 512
"""Specs, of some 30 KB each, and digests of each kind; where more take turns, all is made anew."""


def known_job(manifest: dict[str, Any]) -> RLHFJob:
    """As `parse_job`. Of equal specs all jobs have the same one. Raises InvalidJob."""
    try:
        spec = _spec(json.dumps(manifest["spec"]))
        return RLHFJob.parse({**manifest, "spec": spec})
    except (InvalidJob, ValidationError, KeyError, TypeError):
        return parse_job(manifest)  # which names every problem


@lru_cache(maxsize=REMEMBERED)
def _spec(text: str) -> JobSpec:
    any_job = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": "any"}}
    return parse_job({**any_job, "spec": json.loads(text)}).spec
