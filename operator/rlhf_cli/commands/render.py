"""rlhfctl render: the Kubernetes objects of a whole pipeline, as YAML."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from rlhf_operator.render import preview

from rlhf_cli.failures import DONE
from rlhf_cli.locations import resolved
from rlhf_cli.manifest import read_job
from rlhf_cli.yaml_text import write_document

HEAD: Final = """\
# What {name} leads to if each stage succeeds at its first attempt. The operator makes these one
# stage at a time. Zeros stand for digests that only a run can tell, and the folders named after
# input hashes follow from them: they differ in a real run.
"""


def execute(args: argparse.Namespace) -> int:
    """Print the objects, each after those it needs."""
    job, manifest = read_job(args.file, args.set)
    objects = preview(resolved(job, manifest.folder))
    print(HEAD.format(name=job.metadata.name) + documents(objects), end="")
    return DONE


def documents(objects: Sequence[dict[str, Any]]) -> str:
    """A YAML stream with a line above each object that says what it is."""
    return "".join(f"---\n# {_title(item)}\n{write_document(item)}" for item in objects)


def _title(item: dict[str, Any]) -> str:
    return f"{item['kind']} {item['metadata']['name']}"
