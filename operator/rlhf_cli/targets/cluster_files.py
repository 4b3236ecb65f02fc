"""Files of a job on a cluster, brought here through the log of a pod that mounts its volume."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import MANIFEST
from rlhf_api.status import CheckpointRef
from rlhf_operator.names import CONTAINER_NAME
from rlhf_operator.render.volumes import CHECKPOINTS
from rlhf_operator.storage import place_on_volume

from rlhf_cli.failures import CHECKPOINT, DENIED, TRANSIENT, UNAVAILABLE, Failure
from rlhf_cli.object_store import record_patterns
from rlhf_cli.progress.history import from_log
from rlhf_cli.progress.transfer import Transfer
from rlhf_cli.run_folder import STATUS_FILE, RunFolder, lineage_of
from rlhf_cli.targets.cluster_requests import ClusterRequests, of_job
from rlhf_cli.targets.files import Received
from rlhf_cli.targets.reader_pod import READER, reader_pod
from rlhf_cli.targets.target import LogOptions, Object, PodView
from rlhf_cli.yaml_text import write_document

START_WITHIN: Final = 300.0
"""Seconds that the reader may take to start: its image may have to be pulled."""
PATIENCE: Final = 5.0
LOOK_EVERY: Final = 0.3
AFTER_A_CUT: Final = 1.0


@asynccontextmanager
async def records(target: ClusterRequests, job: RLHFJob) -> AsyncIterator[RunFolder]:
    """A folder as a local run's, with the job's status and what its trainers recorded."""
    with tempfile.TemporaryDirectory(prefix="rlhfctl-") as directory:
        folder = RunFolder(directory)
        text = write_document(job.to_dict())
        (folder.path / STATUS_FILE).write_text(text, encoding="utf-8")
        folder.volume(job).mkdir(parents=True)
        try:
            await _bring_records(target, job, folder)
        except Failure as failure:
            if failure.exit_code not in (DENIED, TRANSIENT):
                raise
            _say(f"Without the trainers' own records, as they cannot be read: {failure.lines[0]}")
            _say("Curves are those of the pods' logs, as far as pods are there.")
            await _curves_of_logs(target, job, folder)
        yield folder


async def _bring_records(target: ClusterRequests, job: RLHFJob, folder: RunFolder) -> None:
    if patterns := record_patterns(job, job.stage_statuses()):
        await _read(target, job, patterns, Received(folder.volume(job)))


async def _curves_of_logs(target: ClusterRequests, job: RLHFJob, folder: RunFolder) -> None:
    with contextlib.suppress(Failure):
        for pod in await target.pods(job):
            stage = job.stage_statuses().get(pod.stage)
            place = lineage_of(job, pod.stage, stage) if stage else None
            if place and pod.completion_index == 0:
                lines = [line async for line in target.log(pod, LogOptions())]
                _write_curves(folder.volume(job) / place / f"attempt-{pod.attempt}", lines)


def _write_curves(attempt: Path, lines: Sequence[str]) -> None:
    rows: dict[float, dict[str, float]] = {}
    for metric, points in from_log(lines).items():
        for step, value in points.items():
            rows.setdefault(step, {})[metric] = value
    attempt.mkdir(parents=True, exist_ok=True)
    with (attempt / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step, metrics in sorted(rows.items()):
            file.write(json.dumps({"step": int(step), "metrics": metrics}) + "\n")


async def fetch(
    target: ClusterRequests, job: RLHFJob, checkpoint: CheckpointRef, folder: Path
) -> None:
    """All files of a checkpoint, each verified against its manifest. Raises Failure."""
    place = place_on_volume(job, checkpoint)
    patterns = [f"{place}/{MANIFEST}", f"{place}/**"]
    with Transfer(f"checkpoint of {job.metadata.name}") as transfer:
        received = Received(folder, below=place, tell=transfer.show)
        await _read_all(target, job, patterns, received)
    if not (folder / MANIFEST).exists():
        raise Failure(f"{checkpoint.uri} is not there any more", exit_code=CHECKPOINT)


async def _read_all(
    target: ClusterRequests, job: RLHFJob, patterns: Sequence[str], received: Received
) -> None:
    """Goes on after a cut, as long as each time more has come. Raises Failure."""
    before = 0
    while True:
        try:
            return await _read(target, job, patterns, received)
        except Failure as failure:
            has_broken = failure.exit_code in (TRANSIENT, UNAVAILABLE)
            if not has_broken or received.here <= before:
                raise
            before = received.here
            is_cut = failure.exit_code == UNAVAILABLE
            why = "the connection broke" if is_cut else failure.lines[0]
            _say(f"{why}; going on from {before / 1e6:,.0f} MB …")
            await asyncio.sleep(AFTER_A_CUT)


async def _read(
    target: ClusterRequests, job: RLHFJob, patterns: Sequence[str], received: Received
) -> None:
    """Has a pod write the files that fit, and takes them. Raises Failure."""
    where = [f"{CHECKPOINTS}/{pattern}" for pattern in patterns]
    body = await _pod(target, job, where, received.have())
    path = f"/api/v1/namespaces/{target.namespace}/pods"
    made = await target.request("POST", path, body, what="pods")
    name = made["metadata"]["name"]
    try:
        await _started(target, name)
        options = LogOptions(follow=True)
        view = PodView(name, "", 0, 0, "Running", container=READER)
        async for line in target.log(view, options):
            received.take(line)
    finally:
        received.close()
        now: Object = {"gracePeriodSeconds": 0}
        with contextlib.suppress(Failure):  # a connection that broke; the pod's time is limited
            await asyncio.shield(
                target.request("DELETE", f"{path}/{name}", now, what=f"pods/{name}")
            )
    if not received.is_complete:
        raise Failure(
            f"the pod {name} ended before all was read: {received.last or 'it wrote nothing'}",
            "run again: it goes on from what is here",
            exit_code=TRANSIENT,
        )


async def _pod(
    target: ClusterRequests, job: RLHFJob, patterns: Sequence[str], have: Mapping[str, int]
) -> Object:
    """With the image of the job's own pods: it is on the nodes already, and has Python."""
    pods = await target.raw_pods(of_job(job))
    images = trainer_images(pods)
    statuses = job.stage_statuses().values()
    images += [status.image for status in statuses if status.image]  # of pods that are gone
    image = next(iter(images), job.spec.image)
    if image is None:
        raise Failure(
            f"{job.metadata.name} has had no pods yet that would tell the trainer's image",
            "run again once it has, or set spec.image in the manifest",
        )
    claim = job.spec.checkpoints.claim
    is_shared = claim is None or claim.access_mode == "ReadWriteMany"
    live = [pod["spec"].get("nodeName") for pod in pods if pod["status"].get("phase") == "Running"]
    node = None if is_shared else next(filter(None, live), None)
    return reader_pod(job, image, patterns, have, node)


def trainer_images(pods: Sequence[Object]) -> list[str]:
    """Of the trainers' containers: a service mesh puts its own before them."""
    containers = [item for pod in pods for item in pod["spec"]["containers"]]
    return [item["image"] for item in containers if item["name"] == CONTAINER_NAME]


async def _started(target: ClusterRequests, name: str) -> None:
    """Until its container has run. Raises Failure with the pod's own words."""
    waited, has_told = 0.0, False
    while True:
        pod = await target.raw_pod(name)
        status = pod.get("status") or {}
        if status.get("phase") in ("Running", "Succeeded", "Failed"):
            return
        why = _why(status)
        if waited > PATIENCE and not has_told:
            has_told = True
            _say(f"Waiting for the pod {name} that reads the volume: {why}")
        if waited > START_WITHIN:
            raise Failure(f"the pod {name} does not start: {why}", exit_code=TRANSIENT)
        await asyncio.sleep(LOOK_EVERY)
        waited += LOOK_EVERY


def _why(status: Object) -> str:
    states = [item.get("state") or {} for item in status.get("containerStatuses") or []]
    told = [state["waiting"] for state in states if state.get("waiting")]
    told += [item for item in status.get("conditions") or [] if item.get("status") == "False"]
    words = [f"{item.get('reason', '')} {item.get('message', '')}".strip() for item in told]
    return next(filter(None, words), "it has not been looked at yet")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
