"""Commands that read a manifest."""

from __future__ import annotations

from rlhf_cli.arguments.command import Commands
from rlhf_cli.arguments.shared import on_cluster, overrides, waiting


def add(commands: Commands) -> None:
    """validate, estimate, render, schema, run, submit."""
    validate = commands.add_parser(
        "validate", help="check manifests and name everything that is wrong"
    )
    validate.add_argument(
        "files", nargs="+", metavar="FILE", help="manifest; '-' reads standard input"
    )
    validate.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to say it"
    )
    estimate = commands.add_parser(
        "estimate", help="say what each stage takes of a GPU, and the job of its volume"
    )
    estimate.add_argument("file", metavar="FILE", help="manifest; '-' reads standard input")
    estimate.add_argument(
        "--gpu",
        metavar="NAME",
        help="which GPU the job gets, or its memory: H100, A100-80GB, 24GB (default: what "
        "resources.device tells, as of a MIG slice); says whether each stage fits",
    )
    estimate.add_argument(
        "--config",
        metavar="FILE",
        help="the model's config.json, where spec.model is neither here nor on the hub",
    )
    estimate.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to say it"
    )
    render = commands.add_parser(
        "render", help="print the Kubernetes objects that a manifest leads to"
    )
    render.add_argument("file", metavar="FILE", help="manifest; '-' reads standard input")
    schema = commands.add_parser("schema", help="print the JSON schema of a manifest")
    schema.add_argument(
        "--crd", action="store_true", help="print the CustomResourceDefinition, as YAML, instead"
    )
    run = commands.add_parser("run", help="run a manifest on this machine")
    run.add_argument("file", metavar="FILE", help="manifest")
    run.add_argument(
        "--dir",
        metavar="DIR",
        help="where everything goes; a second run goes on there (default: runs/NAME)",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="show what the trainers log")
    submit = commands.add_parser("submit", help="send manifests to a cluster, after a check there")
    submit.add_argument(
        "files", nargs="*", metavar="FILE", help="manifest; '-' reads standard input"
    )
    submit.add_argument(
        "-f", "--filename", action="append", default=[], metavar="FILE", help="the same as FILE"
    )
    submit.add_argument(
        "--dry-run", action="store_true", help="let the API server check it, and change nothing"
    )
    submit.add_argument(
        "--force-conflicts", action="store_true", help="take over fields that others have set"
    )
    submit.add_argument(
        "-o",
        "--output",
        choices=("text", "name", "json", "yaml"),
        default="text",
        help="how to say it",
    )
    waiting(submit, "every stage has succeeded, or the job cannot go on; shows its progress")
    on_cluster(submit)
    for command in (validate, estimate, render, run, submit):
        overrides(command)
