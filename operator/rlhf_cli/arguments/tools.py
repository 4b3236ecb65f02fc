"""Commands about the cluster and the shell."""

from __future__ import annotations

from rlhf_cli.arguments.command import Commands
from rlhf_cli.arguments.shared import on_cluster


def add(commands: Commands) -> None:
    """doctor, completion."""
    doctor = commands.add_parser("doctor", help="check a cluster, and say what to mend")
    on_cluster(doctor)
    doctor.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="form of the output"
    )
    completion = commands.add_parser("completion", help="print completion for a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
