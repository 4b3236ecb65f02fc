"""How fast the operator is with many jobs, and what it spends, beside a plain client.

    PYTHONPATH=tests:tests/operator python benchmarks/operator_load.py

    … operator_load.py --jobs 1000 --json

It runs on the test control plane, real but for the kubelet.
Steps of one run: the first objects of N jobs are created directly (the floor), again with their
RLHFJobs and a status of each, and deleted. N jobs are created at once; the operator rests; it is
started anew; their pods are played from a script, until every job is Ready; then jobs arrive
steadily, each of which runs to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cluster.control_plane import ControlPlane
from load_cluster import (
    CONFIG_MAPS,
    FLOOR,
    JOBS,
    NAMESPACE,
    PODS,
    RLHFJOBS_OF,
    PlainClient,
    each,
    manifest,
    running_cluster,
    running_kubelet,
)
from load_meters import STAGES, Cost, Meter, Sightings, percentile, spent_by, until, written
from operator_process import OperatorProcess
from rlhf_api.validation import parse_job
from rlhf_operator.observed import Observed
from rlhf_operator.plan import assess, plan
from rlhf_operator.render import preview
from rlhf_operator.status import next_status

Object = dict[str, Any]
Report = dict[str, Any]

PATIENCE: Final = 1800.0
"""Seconds after which a step counts as failed."""


def main() -> int:
    """Measure and print."""
    options = parsed(sys.argv[1:])
    with (
        tempfile.TemporaryDirectory(prefix="operator-load-") as folder,
        running_cluster(Path(folder)) as control_plane,
    ):
        report = asyncio.run(measured(options, control_plane))
    print(json.dumps(report, indent=2) if options.json else table(report))
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """How many jobs, and for how long."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = options.add_argument
    add("--jobs", type=int, default=200, help="that are created at once (200)")
    add("--rate", type=float, default=5.0, help="jobs a second that arrive afterwards (5)")
    add("--arrivals", type=int, default=100, help="how many arrive (100; 0: none)")
    add("--rest", type=float, default=30.0, help="seconds to look at a steady state (30)")
    add("--log", type=Path, default=Path(os.devnull), help="file for the operator's log")
    add("--without-pods", action="store_true", help="end once the operator was started anew")
    add("--json", action="store_true")
    return options.parse_args(arguments)


async def measured(options: argparse.Namespace, control_plane: ControlPlane) -> Report:
    """Every step in its turn."""
    kubeconfig = control_plane.kubeconfig
    client = PlainClient(kubeconfig)
    report: Report = {"jobs": options.jobs, "load_average": os.getloadavg()[0]}
    flags = ("--lease-namespace", "default")
    operator = OperatorProcess(kubeconfig, (NAMESPACE,), options.log, *flags, is_forked=False)
    meter, sightings = Meter(operator, control_plane), Sightings(client)
    names = [f"job-{number:05}" for number in range(options.jobs)]
    try:
        report["floor"] = told("floor", await floor(client, options.jobs))
        records = await floor_with_records(client, options.jobs, control_plane)
        report["floor with records"] = told("floor with records", records)
        operator.start()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(sightings.follow())
            await answers(meter)
            burst_figures = await burst(names, sightings, meter)
            floors = (report["floor"], report["floor with records"])
            ratios = [burst_figures["seconds"] / of["seconds"] for of in floors]
            names_of = ("ratio_to_floor", "ratio_to_floor_with_records")
            compared = dict(zip(names_of, ratios, strict=True)) | burst_figures
            report["burst"] = told("burst", compared)
            report["rest"] = told("rest", await rest(options.rest, client, meter))
            report["restart"] = told("restart", await restart(operator, meter, options.jobs))
            if not options.without_pods:
                with running_kubelet(kubeconfig):
                    report |= await with_pods(options, names, sightings, meter)
            following.cancel()
    finally:
        operator.end()
        await client.close()
    return report


async def with_pods(
    options: argparse.Namespace, names: list[str], sightings: Sightings, meter: Meter
) -> Report:
    """All that follows once pods run."""
    report = {"completion": told("completion", await completion(names, sightings, meter))}
    if options.arrivals:
        report["arrival"] = told("arrival", await arrival(options, sightings, meter))
    return report


def told(step: str, figures: Report) -> Report:
    """The figures, after a line on stderr."""
    seconds = figures.get("seconds", 0.0)
    print(f"{step}: {seconds:.1f} s" if seconds else f"{step}: done", file=sys.stderr, flush=True)
    return figures


async def answers(meter: Meter) -> None:
    """Waits until the operator has taken its lease, and had a moment to list and watch."""
    while True:
        try:
            if (await meter.cost()).requests["POST", "leases"]:
                break
        except OSError:
            pass
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)


async def floor(client: PlainClient, count: int) -> Report:
    """The ConfigMaps and Jobs that start the jobs, created directly. They are then deleted."""
    configs, jobs = first_objects(count)
    paths = (CONFIG_MAPS, JOBS, PODS)
    config_maps_at, jobs_at, pods_at = (path.format(namespace=FLOOR) for path in paths)
    began = time.monotonic()
    await client.post_all(config_maps_at, configs)
    between = time.monotonic()
    await client.post_all(jobs_at, jobs)
    ended = time.monotonic()
    await client.delete_all(jobs_at)
    while await client.count(pods_at):
        await client.delete_all(pods_at)
        await asyncio.sleep(0.5)
    return {"seconds": ended - began, "jobs_alone_seconds": ended - between}


async def floor_with_records(
    client: PlainClient, count: int, control_plane: ControlPlane
) -> Report:
    """As `floor`, and before that each job's RLHFJob and the status that records its attempt: what
    no operator can do without. They are then deleted."""
    jobs_at, pods_at, configs_at, records_at = (
        path.format(namespace=FLOOR) for path in (JOBS, PODS, CONFIG_MAPS, RLHFJOBS_OF)
    )
    status = first_status()
    await client.delete_all(configs_at)

    async def start(objects: tuple[Object, Object]) -> None:
        config, job = objects
        name = job["metadata"]["name"]
        record = json.loads(await client.post(records_at, manifest(name, FLOOR)))
        await client.put(f"{records_at}/{name}/status", record | {"status": status})
        await client.post(configs_at, config)
        await client.post(jobs_at, job)

    first, *rest = zip(*first_objects(count + 1), strict=True)
    await start(first)  # for it the API server makes the kind's rules ready, once
    before, own, began = spent_by(control_plane), time.process_time(), time.monotonic()
    await each(rest, start)
    seconds = time.monotonic() - began
    spent = {"client": time.process_time() - own} | {
        name: now - before[name] for name, now in spent_by(control_plane).items()
    }
    await client.delete_all(records_at)
    await client.delete_all(jobs_at)
    while await client.count(pods_at):
        await client.delete_all(pods_at)
        await asyncio.sleep(0.5)
    return {"seconds": seconds, "cpu_seconds": spent}


def first_status() -> Object:
    """That with which the operator begins a job."""
    job = parse_job(manifest("floor"))
    assessment = assess(job, Observed(), datetime.now(UTC))
    return next_status(assessment, plan(assessment)).to_dict()


def first_objects(count: int) -> tuple[list[Object], list[Object]]:
    """ConfigMaps and Jobs, as the operator makes them; without an owner, which is not there."""
    metadata = {"name": "floor", "namespace": FLOOR, "uid": "none"}
    objects = preview(parse_job(manifest("floor") | {"metadata": metadata}))
    config, job = (
        next(item for item in objects if item["kind"] == kind) for kind in ("ConfigMap", "Job")
    )
    return copies(config, count), copies(job, count)


def copies(item: Object, count: int) -> list[Object]:
    """The same object under other names."""
    made = [copy.deepcopy(item) for _ in range(count)]
    for number, each_one in enumerate(made):
        each_one["metadata"].pop("ownerReferences")
        each_one["metadata"]["name"] = f"floor-{number:05}"
    return made


async def burst(names: list[str], sightings: Sightings, meter: Meter) -> Report:
    """All jobs at once, until each has its first Job. No pod runs yet."""
    before, began = await meter.cost(), time.monotonic()
    await each([manifest(name) for name in names], sightings.create)
    created = time.monotonic() - began
    await until(lambda: len(sightings.made) >= len(names), PATIENCE)
    seconds = max(sightings.made.values()) - began
    cost = await settled(meter)
    waits = sightings.first_jobs(names)
    return {
        "created_seconds": created,
        "seconds": seconds,
        "p50_seconds": percentile(waits, 0.5),
        "p99_seconds": percentile(waits, 0.99),
        **costs(cost.since(before), len(names)),
    }


async def settled(meter: Meter) -> Cost:
    """The cost once two looks, two seconds apart, see no passes between them."""
    passes = -1
    while passes != (now := await meter.passes()):
        passes = now
        await asyncio.sleep(2)
    return await meter.cost()


async def rest(seconds: float, client: PlainClient, meter: Meter) -> Report:
    """What is sent while nothing happens, and every job is under way."""
    before, wrote = await meter.cost(), written(await client.text("/metrics"))
    await asyncio.sleep(seconds)
    wrote = written(await client.text("/metrics")) - wrote
    cost = (await meter.cost()).since(before)
    a_minute = 60 / seconds
    return {
        "writes_seen_by_the_api_server": wrote,
        "requests_per_minute": {
            f"{verb} {resource}": round(count * a_minute, 1)
            for (verb, resource), count in sorted(cost.requests.items())
        },
        "operator_cpu_share": cost.cpu_seconds["operator"] / seconds,
    }


async def restart(operator: OperatorProcess, meter: Meter, count: int) -> Report:
    """From the start of a process to the end of its first pass over the last job."""
    operator.terminate()
    began = time.monotonic()
    operator.start()
    while await meter.passes() < count:
        await asyncio.sleep(0.1)
    seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "operator_cpu_seconds": (await meter.cost()).cpu_seconds["operator"],
    }


async def completion(names: list[str], sightings: Sightings, meter: Meter) -> Report:
    """Pods of all jobs begin to run, until every job is Ready."""
    before, began = await meter.cost(), time.monotonic()
    await until(lambda: len(sightings.ready) >= len(names), PATIENCE)
    seconds = time.monotonic() - began
    return {"seconds": seconds, **costs((await settled(meter)).since(before), len(names))}


async def arrival(options: argparse.Namespace, sightings: Sightings, meter: Meter) -> Report:
    """Jobs that arrive one after another, on top of those that are there; each runs to its end."""
    names = [f"late-{number:05}" for number in range(options.arrivals)]
    before, began = await meter.cost(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(names):
            await asyncio.sleep(began + number / options.rate - time.monotonic())
            group.create_task(sightings.create(manifest(name)))
    await until(lambda: sightings.have_seen_all_of(names), PATIENCE)
    starts = [sightings.made[name, STAGES[0]] - sightings.created[name] for name in names]
    reactions = sightings.reactions(names)
    return {
        "rate": options.rate,
        "arrivals": options.arrivals,
        "first_job_p50_seconds": percentile(starts, 0.5),
        "first_job_p99_seconds": percentile(starts, 0.99),
        "reaction_p50_seconds": percentile(reactions, 0.5),
        "reaction_p99_seconds": percentile(reactions, 0.99),
        **costs((await settled(meter)).since(before), len(names)),
    }


def costs(cost: Cost, count: int) -> Report:
    """Per job: requests by verb and resource."""
    by_request = {
        f"{verb} {resource}": round(number / count, 2)
        for (verb, resource), number in sorted(cost.requests.items())
        if resource != "leases"
    }
    return {
        "requests_per_job": round(sum(by_request.values()), 2),
        "requests_per_job_by_verb": by_request,
        "cpu_seconds": dict(cost.cpu_seconds),
        "peak_memory_megabytes": cost.memory_bytes / 1e6,
    }


def table(report: Report) -> str:
    """A line for each figure."""
    lines = []
    for step, figures in report.items():
        if isinstance(figures, dict):
            lines += ["", step, *(f"  {line}" for line in rows(figures))]
        else:
            lines.append(f"{step:36} {figures:10.1f}")
    return "\n".join(lines)


def rows(figures: Report) -> list[str]:
    """Names and values; what is itself a table follows indented."""
    lines: list[str] = []
    for name, value in figures.items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [label, *(f"  {line}" for line in rows(value))]
        else:
            lines.append(
                f"{label:32} {value:10.3f}"
                if isinstance(value, float)
                else f"{label:32} {value:>6}"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
