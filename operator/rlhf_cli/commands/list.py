"""rlhfctl list: all jobs of a namespace, of a cluster, or of a directory of runs."""

from __future__ import annotations

from rlhf_cli.commands.get import execute

__all__ = ["execute"]
