"""rlhfctl submit: manifests go to a cluster, checked there first; with --wait to their end."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any, Final

from rlhf_operator.api import ApiError
from rlhf_operator.render.platform import Platform
from rlhf_operator.support import unsupported

from rlhf_cli.failures import DONE, USAGE, Failure
from rlhf_cli.follow import follow
from rlhf_cli.manifest import Manifest, Refused, locate, read_job
from rlhf_cli.output import DOCUMENTS, aside, name_of, print_document
from rlhf_cli.program import program
from rlhf_cli.targets.cluster import ClusterTarget
from rlhf_cli.targets.connection import Access, connected
from rlhf_cli.targets.refusals import refusal

Object = dict[str, Any]
WRITTEN: Final = ("apiVersion", "kind", "metadata", "spec")


def execute(args: argparse.Namespace) -> int:
    """Check every file here, then there, then apply each."""
    files = [*args.files, *args.filename]
    if not files:
        raise Failure(f"name a manifest: {program()} submit FILE")
    manifests = [checked(file, args.set) for file in files]
    if args.wait and len(manifests) > 1:
        raise Failure("--wait follows one job: submit one file")
    return asyncio.run(_submit(args, manifests))


def checked(file: str, overrides: list[str]) -> Manifest:
    """A manifest that a cluster can run. Raises Failure with all that is wrong."""
    job, manifest = read_job(file, overrides)
    if wrong := unsupported(job, Platform()):
        raise Refused(file, locate(wrong, manifest.positions))
    body = {key: manifest.obj[key] for key in WRITTEN if key in manifest.obj}
    return manifest._replace(obj=body)


async def _submit(args: argparse.Namespace, manifests: list[Manifest]) -> int:
    async with connected(Access.of(args)) as target:
        for manifest in manifests:
            _same_namespace(manifest, args.namespace, target)
        force = args.force_conflicts
        for manifest in manifests:  # one that is refused keeps all others from being applied
            await _apply(target, manifest, dry_run=True, force=force)
        for manifest in manifests:
            name = manifest.obj["metadata"]["name"]
            before = None if args.dry_run else await _there(target, name)
            item = await _apply(target, manifest, dry_run=args.dry_run, force=force)
            if args.output in DOCUMENTS:
                print_document(item, args.output, is_first=manifest is manifests[0])
            elif args.output == "name":
                print(name_of(item))
            else:
                print(f"{name_of(item)} {_done(item, before, args.dry_run)}")
            sys.stdout.flush()
        if args.dry_run or not args.wait:
            return DONE
        with aside(args.output):
            return await follow(target, manifests[0].obj["metadata"]["name"], args.timeout)


def _same_namespace(manifest: Manifest, asked: str | None, target: ClusterTarget) -> None:
    """The manifest's own namespace counts where the command line names none."""
    own = manifest.obj["metadata"].get("namespace")
    if own and asked and own != asked:
        raise Failure(
            f"{manifest.name} is for the namespace {own}, and -n says {asked}: change one of them"
        )
    if own:
        target.namespace = own


async def _there(target: ClusterTarget, name: str) -> Object | None:
    """The job as it is; None where there is none."""
    from rlhf_operator.cluster import RLHFJOBS

    try:
        return await target.api.get(RLHFJOBS, target.namespace, name)
    except ApiError as error:
        if error.code == 404:
            return None
        raise refusal(error, "get", f"rlhfjobs/{name}", target.namespace) from None


async def _apply(
    target: ClusterTarget, manifest: Manifest, *, dry_run: bool, force: bool
) -> Object:
    meta = manifest.obj["metadata"]
    body = {**manifest.obj, "metadata": {**meta, "namespace": target.namespace}}
    try:
        return await target.apply(body, dry_run=dry_run, force=force)
    except ApiError as error:
        raise _refused(manifest, error, target) from None


def _refused(manifest: Manifest, error: ApiError, target: ClusterTarget) -> Failure:
    name, said = manifest.obj["metadata"]["name"], str(error.args[0])
    if error.code == 409:
        return Failure(
            f"{manifest.name}: others have set fields of {name}: {said}",
            "leave those fields out, or take them over with --force-conflicts",
        )
    if error.code in (400, 422):
        return Failure(f"{manifest.name} is refused by the API server:", said, exit_code=USAGE)
    return refusal(error, "patch", f"rlhfjobs/{name}", target.namespace)


def _done(item: Object, before: Object | None, dry_run: bool) -> str:
    if dry_run:
        return "is accepted (dry run)"
    if before is None:
        return "created"
    return "unchanged" if _given(item) == _given(before) else "configured"


def _given(job: Object) -> tuple[Any, ...]:
    """What a manifest can change: the operator writes a status at any time in between."""
    meta = job["metadata"]
    return meta["uid"], meta["generation"], meta.get("labels"), meta.get("annotations")
