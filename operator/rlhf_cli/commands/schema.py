"""rlhfctl schema: the JSON schema of a manifest, for editors and pipelines."""

from __future__ import annotations

import argparse
import json

from rlhf_api.schema import job_schema

from rlhf_cli.failures import DONE


def execute(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(json.dumps(job_schema(), ensure_ascii=False, indent=2))
    return DONE
