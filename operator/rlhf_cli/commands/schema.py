"""rlhfctl schema: what a manifest may say, for editors, pipelines and the API server."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml
from rlhf_api.crd import crd
from rlhf_api.schema import job_schema

from rlhf_cli.failures import DONE


class _Plain(yaml.SafeDumper):
    """YAML without anchors, which other tools need not understand."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def execute(args: argparse.Namespace) -> int:
    """Print the JSON schema, or the CustomResourceDefinition."""
    if args.crd:
        print("# Made from operator/rlhf_api by `make generate`.")
        print(_yaml(crd()), end="")
    else:
        print(json.dumps(job_schema(), ensure_ascii=False, indent=2))
    return DONE


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)
