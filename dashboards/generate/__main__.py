"""`python dashboards/generate > dashboards/rlhf.json`; `make generate` does it."""

from __future__ import annotations

import json
from typing import Final

from of_jobs import COST, JOBS, TRAINING
from of_operator import OPERATOR
from panels import DATASOURCE, Object, placed

SCHEMA_VERSION: Final = 39
"""Of the classic form, as Grafana 10.4 writes it; newer ones read it."""


def variable(name: str, label: str, query: str) -> Object:
    """A choice of values, all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> Object:
    """The whole of it; `uid` keeps its address over updates."""
    source = {"type": "datasource", "name": "datasource", "label": "Data source"}
    chosen = {"text": "default", "value": "default"}
    jobs = "rlhf_stage_progress_ratio"
    return {
        "uid": "rlhf-operator",
        "title": "RLHF pipelines",
        "description": "RLHFJobs and their operator: what runs, what waits and why, what it costs.",
        "tags": ["rlhf"],
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "time": {"from": "now-24h", "to": "now"},
        "refresh": "1m",
        "templating": {
            "list": [
                source | {"query": "prometheus", "refresh": 1, "current": chosen},
                variable("namespace", "Namespace", f"label_values({jobs}, namespace)"),
                variable("job", "Job", f'label_values({jobs}{{namespace=~"$namespace"}}, job)'),
                variable("stage", "Stage", "label_values(rlhf_gpu_seconds_total, stage)"),
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": placed([JOBS, TRAINING, COST, OPERATOR]),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
