"""Gauges of the jobs that are there, read from their statuses as they are, without validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from rlhf_api.status import JobPhase

from rlhf_operator.decisions import HELD_UP
from rlhf_operator.times import read

Object = Mapping[str, Any]

MOST_JOBS: Final = 2000
"""Running jobs that have gauges of their own."""
PHASES: Final[tuple[str, ...]] = get_args(JobPhase)
WAITING: Final = ("Pending", "Waiting")
"""Phases of a stage that has not ended and does not run; one that runs may be held up, too."""
OF_JOB: Final = ["namespace", "job"]
OF_STAGE: Final = [*OF_JOB, "stage"]

REPORTED: Final = {
    "rlhf_stage_loss": ("Newest loss of a running stage.", ("train/loss", "loss")),
    "rlhf_stage_entropy": (
        "Newest entropy of the policy, in nats a token.",
        ("ppo/entropy", "entropy", "policy/entropy_avg"),
    ),
    "rlhf_stage_response_length": (
        "Newest mean length of a response, in tokens.",
        ("ppo/response_length", "completions/mean_length"),
    ),
    "rlhf_stage_tokens_per_second": (
        "Newest throughput of all devices of a stage together.",
        ("train/tokens_per_second", "train_tokens_per_second"),
    ),
}
"""What it is, and the metrics of a trainer that it is read from: ours, then those of TRL's."""


def collect_from(manifests: Iterable[Object]) -> Iterator[Metric]:
    """All of them."""
    phases = dict.fromkeys(PHASES, 0)
    reasons = Counter[str]()
    oldest = dict[tuple[str, str], float]()
    in_use, running = 0, list[Object]()
    for manifest in manifests:
        status = manifest.get("status") or {}
        phase = status.get("phase")
        phases[phase if phase in phases else "Pending"] += 1
        in_use += status.get("gpus") or 0
        reasons.update(_why_stages_wait(status))
        for reason, since in _waits_for_a_place(status):
            key = manifest["metadata"]["namespace"], reason
            oldest[key] = min(since, oldest.get(key, since))
        if phase == "Running":
            running.append(manifest)
    yield _counted("rlhf_jobs", "RLHFJobs by phase.", "phase", phases)
    waiting = "Stages that wait, of jobs that are not over, by reason."
    yield _counted("rlhf_stages_waiting", waiting, "reason", reasons)
    yield _oldest_waits(oldest)
    yield GaugeMetricFamily("rlhf_gpus_in_use", "Devices of the stages under way.", in_use)
    yield from _of_running(running[:MOST_JOBS])


def _why_stages_wait(status: Mapping[str, Any]) -> Iterator[str]:
    """Reasons of the operator's own, a few dozen words; a job that is over waits for nothing."""
    if status.get("phase") in ("Succeeded", "Failed"):
        return
    stages = [status.get("prepare") or {}, *(status.get("stages") or {}).values()]
    for stage in stages:
        reason = stage.get("reason")
        if reason and (stage.get("phase") in WAITING or reason in HELD_UP):
            yield reason


def _waits_for_a_place(status: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Why pods of a job have no place, and since when, in seconds of Unix time."""
    for condition in status.get("conditions") or []:
        if condition["type"] == "Scheduled" and condition["status"] == "False":
            yield condition["reason"], read(condition["lastTransitionTime"]).timestamp()


def _oldest_waits(oldest: Mapping[tuple[str, str], float]) -> Metric:
    family = GaugeMetricFamily(
        "rlhf_oldest_wait_timestamp_seconds",
        "Since when the job of a namespace whose pods have waited longest for their place does so, "
        "in Unix time, by reason.",
        labels=["namespace", "reason"],
    )
    for labels, since in list(oldest.items())[:MOST_JOBS]:
        family.add_metric(labels, since)
    return family


def _counted(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _of_running(manifests: Iterable[Object]) -> Iterator[Metric]:
    """What trainers last reported, a series a job or a stage; MOST_JOBS bounds their number."""
    reward = GaugeMetricFamily(
        "rlhf_job_reward", "Newest mean reward of a running job.", labels=OF_JOB
    )
    kl = GaugeMetricFamily(
        "rlhf_job_kl", "Newest KL divergence to the reference of a running job.", labels=OF_JOB
    )
    progress = GaugeMetricFamily(
        "rlhf_stage_progress_ratio",
        "Share of a running stage that is done, 0 to 1.",
        labels=OF_STAGE,
    )
    alarms = GaugeMetricFamily(
        "rlhf_stage_alarm",
        "1 while a running stage is out of the bounds that the job names; alarm: KLNearLimit, "
        "KLOffTarget.",
        labels=[*OF_STAGE, "alarm"],
    )
    reported = {
        name: GaugeMetricFamily(name, text, labels=OF_STAGE) for name, (text, _) in REPORTED.items()
    }
    for manifest in manifests:
        meta, status = manifest["metadata"], manifest["status"]
        labels = [meta["namespace"], meta["name"]]
        for family, field in ((reward, "reward"), (kl, "kl")):
            if status.get(field) is not None:
                family.add_metric(labels, status[field])
        for name, stage in (status.get("stages") or {}).items():
            if stage.get("phase") != "Running":
                continue
            if stage.get("progressPercent") is not None:
                progress.add_metric([*labels, name], stage["progressPercent"] / 100)
            for alarm in stage.get("alarms") or []:
                alarms.add_metric([*labels, name, alarm], 1)
            for gauge, value in _reported(stage.get("metrics") or {}):
                reported[gauge].add_metric([*labels, name], value)
    yield from (reward, kl, progress, alarms, *reported.values())


def _reported(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Gauges that a stage's metrics give a value to."""
    for gauge, (_, names) in REPORTED.items():
        if found := [metrics[name] for name in names if name in metrics]:
            yield gauge, found[0]
