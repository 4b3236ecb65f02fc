"""Reports of a real pod's token to a real operator of two replicas, as they reach the status."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, succeed
from cluster.programs import free_ports
from cluster_jobs import Jobs, manifest, stage
from operator_process import OperatorProcess
from reports import path_of, report, scraped, token_of


def play(pod: dict[str, Any]) -> Script:
    """Stages train until they are told to end."""
    is_stage = pod["metadata"]["labels"]["rlhf.dev/stage"] != "prepare"
    return Script(start_s=0.1, run_s=None) if is_stage else succeed(pod)


def until(what: Callable[[], bool], timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_reports_reach_the_status_through_either_replica_and_outlive_the_leader(
    installed: ControlPlane,
    jobs: Jobs,
    namespace: str,
    make_node: Callable[..., Any],
    run_operator: Callable[..., OperatorProcess],
) -> None:
    ports = free_ports(2)
    replicas = {}
    for port in ports:
        url = f"http://rlhf-operator:{port}"
        replicas[port] = run_operator("--progress-port", str(port), "--progress-url", url)
    node = make_node({"nvidia.com/gpu": 8})
    with Kubelet(installed.kubeconfig, Scripted(play), [node]):
        jobs.create(manifest(namespace, nodes=1, stages="sft"))
        jobs.wait_running("sft")
        (pod,) = jobs.pods("sft")
        token, path = token_of(jobs.client, pod), path_of(pod)
        lease = jobs.client.get("coordination.k8s.io/v1/leases", "rlhf-operator", namespace)
        first = int(lease["spec"]["holderIdentity"].rpartition(":")[2])
        (second,) = set(ports) - {first}

        until(lambda: report(second, path, token, 40, kl=0.25) == 200)  # up, and knows the leader
        assert report(second, path.replace("/1", "/2"), token, 90) == 403
        jobs.wait(lambda job: stage(job, "sft").get("progressPercent") == 40)

        replicas[first].kill()
        until(lambda: report(second, path, token, 70, loss=1.5) == 200)
        job = jobs.wait(lambda job: stage(job, "sft").get("progressPercent") == 70)
        assert stage(job, "sft")["metrics"] == {"kl": 0.25, "loss": 1.5}
        assert stage(job, "sft")["attempt"] == 1

        version = job["metadata"]["resourceVersion"]
        for _ in range(3):
            time.sleep(1)
            assert report(second, path, token, 70, loss=1.50001) == 200
        assert jobs.get()["metadata"]["resourceVersion"] == version

        found = scraped(replicas[second].health_port)
        assert found["rlhf_operator_is_leader",] == 1
        assert found["rlhf_operator_progress_reports_total", "200"] >= 5
        assert found["rlhf_operator_api_requests_total", "201", "tokenreviews", "POST"] == 1
        assert found["rlhf_jobs", "Running"] == 1
        assert found["rlhf_gpus_in_use",] == 4
        assert found["rlhf_stage_progress_ratio", "tiny", namespace, "sft"] == 0.7
