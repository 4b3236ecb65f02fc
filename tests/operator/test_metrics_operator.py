"""What Prometheus reads: names, labels, counts; over a real connection where that matters."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rlhf_api.status import AttemptEnd, GPUSeconds, JobPhase, JobStatus, StageStatus
from rlhf_operator import job_gauges
from rlhf_operator.job_gauges import collect_from
from rlhf_operator.metrics import MOST_WORDS, Metrics


def a_manifest(name: str, phase: str | None, **status: Any) -> dict[str, Any]:
    given = {"phase": phase, **status} if phase else None
    return {"metadata": {"namespace": "default", "name": name}, "status": given}


def samples(manifests: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    found = {}
    for family in collect_from(manifests):
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def an_end(kind: str = "Done", attempt: int = 1, time: str = "2026-01-31T13:00:00Z") -> AttemptEnd:
    return AttemptEnd.model_validate(
        {"attempt": attempt, "kind": kind, "reason": "Because", "time": time}
    )


NOON = "2026-01-31T12:00:00Z"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "monitoring.md"


def test_what_is_scraped_is_what_the_reference_has_and_no_more() -> None:
    """prometheus_client adds a gauge to each counter, `…_created`."""
    metrics = Metrics(lambda: [a_manifest("a", "Running")], lambda: {"jobs": 1.0})
    metrics.wrote(None, JobStatus(stages={"sft": StageStatus(attempt=1, ended=an_end())}))
    metrics.reconciled(0.02, "ApiError")
    documented = set(re.findall(r"^\| `(rlhf_\w+)`", REFERENCE.read_text(), re.MULTILINE))
    scraped = generate_latest(metrics.registry).decode()
    assert set(re.findall(r"^# TYPE (\S+)", scraped, re.MULTILINE)) <= documented


def test_jobs_are_counted_by_phase_also_where_there_are_none() -> None:
    found = samples([a_manifest("a", "Running"), a_manifest("b", None), a_manifest("c", "Odd")])
    counts = {key[1]: count for key, count in found.items() if key[0] == "rlhf_jobs"}
    assert counts == dict.fromkeys(get_args(JobPhase), 0) | {"Pending": 2, "Running": 1}


def test_reward_kl_and_progress_are_those_of_running_jobs() -> None:
    stages = {
        "sft": {"phase": "Succeeded", "progressPercent": 100},
        "ppo": {"phase": "Running", "progressPercent": 41},
    }
    running = a_manifest("a", "Running", reward=0.5, kl=0.0, gpus=8, stages=stages)
    done = a_manifest("b", "Succeeded", reward=0.9, kl=0.2)
    found = samples([running, done, a_manifest("c", "Running")])
    assert found["rlhf_job_reward", "default", "a"] == 0.5
    assert found["rlhf_job_kl", "default", "a"] == 0.0
    assert found["rlhf_stage_progress_ratio", "default", "a", "ppo"] == 0.41
    assert ("rlhf_stage_progress_ratio", "default", "a", "sft") not in found
    assert found["rlhf_gpus_in_use",] == 8
    assert {key[2] for key in found if key[0].startswith(("rlhf_job_", "rlhf_stage_"))} == {"a"}


def test_what_a_running_stage_reports_is_read_by_our_names_and_by_those_of_trl() -> None:
    ours = {"phase": "Running", "metrics": {"ppo/entropy": 2.5, "train/tokens_per_second": 9e4}}
    trl = {"phase": "Running", "metrics": {"entropy": 1.5, "completions/mean_length": 80.0}}
    over = {"phase": "Succeeded", "metrics": {"train/loss": 0.1}}
    found = samples([a_manifest("a", "Running", stages={"ppo": ours, "dpo": trl, "sft": over})])
    assert {key[0][11:] + "/" + key[3]: n for key, n in found.items() if len(key) > 3} == {
        "entropy/ppo": 2.5,
        "tokens_per_second/ppo": 9e4,
        "entropy/dpo": 1.5,
        "response_length/dpo": 80.0,
    }


def test_stages_that_wait_are_counted_by_their_reason() -> None:
    starved = {"phase": "Pending", "reason": "Unschedulable"}
    behind = {"phase": "Waiting", "reason": "WaitingForParents"}
    trains = {"phase": "Running", "reason": "Training"}
    one = a_manifest("a", "Pending", prepare={"phase": "Succeeded"}, stages={"sft": starved})
    two = a_manifest("b", "Running", stages={"sft": trains, "reward": starved, "ppo": behind})
    lost = {"phase": "Running", "reason": "NodeLost"}
    three = a_manifest("c", "Running", stages={"sft": lost})
    over = a_manifest("d", "Failed", stages={"ppo": behind})
    found = samples([one, two, three, over])
    waiting = {key[1]: n for key, n in found.items() if key[0] == "rlhf_stages_waiting"}
    assert waiting == {"Unschedulable": 2, "WaitingForParents": 1, "NodeLost": 1}


def test_the_oldest_wait_for_a_place_is_told_by_namespace_and_reason() -> None:
    def waits(name: str, reason: str, hour: int, status: str = "False") -> dict[str, Any]:
        time = f"2026-01-31T{hour}:00:00Z"
        condition = {"type": "Scheduled", "status": status, "reason": reason}
        suspended = {"type": "Suspended", "status": "False", "reason": "Training"}
        conditions = [{**item, "lastTransitionTime": time} for item in (suspended, condition)]
        return a_manifest(name, "Pending", conditions=conditions)

    manifests = [
        waits("a", "Unschedulable", 13),
        waits("b", "Unschedulable", 12),
        waits("c", "QueueAdmission", 14),
        waits("d", "Scheduled", 11, "True"),
        waits("e", "NoPods", 11, "Unknown"),
    ]
    found = samples(manifests)
    since = {key[1:]: n for key, n in found.items() if key[0].startswith("rlhf_oldest_wait")}
    noon = 1769860800.0
    assert since == {
        ("default", "Unschedulable"): noon,
        ("default", "QueueAdmission"): noon + 2 * 3600,
    }


def test_alarms_of_running_stages_have_a_series_each() -> None:
    far = {"phase": "Running", "alarms": ["KLNearLimit", "KLOffTarget"]}
    over = {"phase": "Failed", "alarms": ["KLNearLimit"]}
    found = samples([a_manifest("a", "Running", stages={"ppo": far, "dpo": over})])
    raised = {key[1:]: n for key, n in found.items() if key[0] == "rlhf_stage_alarm"}
    assert raised == {
        ("default", "a", "ppo", "KLNearLimit"): 1,
        ("default", "a", "ppo", "KLOffTarget"): 1,
    }


def test_the_number_of_jobs_with_series_of_their_own_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_gauges, "MOST_JOBS", 2)
    found = samples([a_manifest(name, "Running", reward=1.0) for name in "abc"])
    assert [key[2] for key in found if key[0] == "rlhf_job_reward"] == ["a", "b"]
    assert found["rlhf_jobs", "Running"] == 3


def test_an_attempt_that_ends_is_measured_once() -> None:
    metrics = Metrics()
    running = JobStatus(stages={"ppo": StageStatus(attempt=1, start_time=NOON)})
    spent = GPUSeconds(useful=7200, waiting=30)
    ended = StageStatus(attempt=1, start_time=NOON, ended=an_end(), gpu_seconds=spent)
    done = JobStatus(stages={"ppo": ended})
    metrics.wrote(running, done)
    metrics.wrote(done, done)
    name = "rlhf_stage_duration_seconds"
    assert value(metrics, f"{name}_sum", stage="ppo", result="done") == 3600
    assert value(metrics, f"{name}_count", stage="ppo", result="done") == 1
    assert value(metrics, "rlhf_gpu_seconds_total", stage="ppo", outcome="useful") == 7200
    assert value(metrics, "rlhf_gpu_seconds_total", stage="ppo", outcome="waiting") == 30
    assert value(metrics, "rlhf_gpu_seconds_total", stage="ppo", outcome="repeated") is None


def test_an_attempt_is_measured_by_its_own_start_although_the_next_has_begun() -> None:
    metrics = Metrics()
    before = JobStatus(prepare=StageStatus(attempt=1, start_time=NOON))
    next_one = StageStatus(attempt=2, ended=an_end("Fault"), restarts={"Fault": 1})
    metrics.wrote(before, JobStatus(prepare=next_one))
    labels = {"stage": "prepare", "result": "fault"}
    assert value(metrics, "rlhf_stage_duration_seconds_sum", **labels) == 3600
    assert value(metrics, "rlhf_stage_restarts_total", stage="prepare", cause="fault") == 1


def test_an_end_without_a_start_and_a_clock_that_went_back_break_nothing() -> None:
    metrics = Metrics()
    metrics.wrote(None, JobStatus(stages={"sft": StageStatus(attempt=1, ended=an_end("Final"))}))
    later = StageStatus(attempt=1, start_time="2026-01-31T14:00:00Z", ended=an_end())
    metrics.wrote(None, JobStatus(stages={"sft": later}))
    name = "rlhf_stage_duration_seconds"
    assert value(metrics, f"{name}_count", stage="sft", result="final") is None
    assert value(metrics, f"{name}_sum", stage="sft", result="done") == 0


def test_passes_errors_requests_and_waits_are_counted() -> None:
    metrics = Metrics(queue_depth=lambda: 3)
    metrics.reconciled(0.02, None)
    metrics.reconciled(0.5, "ApiError")
    metrics.api_request("PUT", "rlhfjobs", 409)
    metrics.waited(0.1)
    metrics.leads(True)
    metrics.reported(403)
    duration = "rlhf_operator_reconcile_duration_seconds"
    assert value(metrics, f"{duration}_count", result="ok") == 1
    assert value(metrics, f"{duration}_bucket", result="error", le="0.5") == 1
    assert value(metrics, "rlhf_operator_reconcile_errors_total", reason="ApiError") == 1
    request = {"verb": "PUT", "resource": "rlhfjobs", "code": "409"}
    assert value(metrics, "rlhf_operator_api_requests_total", **request) == 1
    assert value(metrics, "rlhf_operator_queue_depth") == 3
    assert value(metrics, "rlhf_operator_queue_wait_seconds_sum") == 0.1
    assert value(metrics, "rlhf_operator_is_leader") == 1
    assert value(metrics, "rlhf_operator_progress_reports_total", code="403") == 1


def test_labels_from_outside_are_bounded() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.reconciled(0.1, f"Reason{number}")
    (family,) = (
        f for f in metrics.registry.collect() if f.name == "rlhf_operator_reconcile_errors"
    )
    reasons = {sample.labels["reason"] for sample in family.samples}
    assert len(reasons) == MOST_WORDS + 1
    assert value(metrics, "rlhf_operator_reconcile_errors_total", reason="other") == 936


def test_a_scrape_gives_what_is_there_at_that_moment_in_the_format_asked_for() -> None:
    manifests: list[dict[str, Any]] = []
    metrics = Metrics(lambda: manifests, lambda: {"pods": 12.5})

    async def scrape(accept: str) -> tuple[str, str]:
        app = web.Application()
        app.router.add_get("/metrics", metrics.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
        async with aiohttp.ClientSession(headers={"Accept": accept}) as session:
            answer = await session.get(url)
            text = await answer.text()
        await runner.cleanup()
        return text, answer.headers["Content-Type"]

    manifests.append(a_manifest("a", "Running", reward=0.5))
    text, kind = asyncio.run(scrape("text/plain"))
    assert kind.startswith("text/plain")
    assert 'rlhf_job_reward{job="a",namespace="default"} 0.5' in text
    assert 'rlhf_operator_watch_age_seconds{resource="pods"} 12.5' in text
    manifests.clear()
    text, kind = asyncio.run(scrape("application/openmetrics-text; version=1.0.0"))
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert "rlhf_job_reward{" not in text
    assert text.endswith("# EOF\n")


def test_names_follow_prometheus_conventions() -> None:
    metrics = Metrics(lambda: [a_manifest("a", "Running", reward=0.5)], lambda: {"pods": 1.0})
    metrics.wrote(None, JobStatus(stages={"sft": StageStatus(attempt=1, ended=an_end())}))
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        assert re.fullmatch(r"rlhf_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.type == "gauge":
            assert not family.name.endswith("_total")
