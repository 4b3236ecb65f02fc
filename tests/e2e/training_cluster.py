"""A cluster that trains: operator and pods are processes, all else is Kubernetes' own."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import short_job
import warm
import yaml
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Processes
from cluster.nodes import FakeNode, FakeNodes
from cluster.programs import free_ports
from cluster_jobs import Jobs, condition
from operator_process import OperatorProcess
from operator_rights import allow_reviews, limited
from prometheus_client.parser import text_string_to_metric_families

Object = dict[str, Any]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PATIENCE = 600.0
"""Seconds for what takes one or two minutes on two free cores."""


class TrainingCluster:
    """The quickstart job in a namespace, and what users and clusters do to it."""

    def __init__(
        self,
        plane: ControlPlane,
        jobs: Jobs,
        operator: OperatorProcess,
        kubelet: Kubelet,
        nodes: list[FakeNode],
    ) -> None:
        self.plane, self.jobs = plane, jobs
        self.operator, self.kubelet = operator, kubelet
        self._nodes = {node.name: node for node in nodes}

    def kubectl(self, *words: str, text: str | None = None) -> str:
        return self.plane.kubectl("--namespace", self.jobs.namespace, *words, input=text)

    def offer_data(self) -> None:
        """A claim with all that the job reads, as somebody had made it before."""
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": short_job.CLAIM},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        self.kubectl("apply", "-f", "-", text=yaml.safe_dump(claim))
        bound = "jsonpath={.status.phase}=Bound"
        self.kubectl("wait", f"--for={bound}", f"pvc/{short_job.CLAIM}", f"--timeout={PATIENCE:g}s")
        short_job.fill(self.volume(short_job.CLAIM))

    def volume(self, claim: str) -> Path:
        """The directory behind a claim."""
        client, namespace = self.jobs.client, self.jobs.namespace
        bound = client.get("v1/persistentvolumeclaims", claim, namespace)
        volume = client.get("v1/persistentvolumes", bound["spec"]["volumeName"])
        return Path(volume["spec"]["hostPath"]["path"])

    @property
    def checkpoints(self) -> Path:
        return self.volume(f"{short_job.NAME}-checkpoints")

    def job(self) -> Object:
        return self.jobs.get(short_job.NAME)

    def apply(self, manifest: Object | None = None) -> None:
        text = yaml.safe_dump(manifest or short_job.manifest())
        self.kubectl("apply", "-f", "-", text=text)

    def edit(self, patch: str) -> None:
        self.kubectl("patch", "rlhfjob", short_job.NAME, "--type=merge", "--patch", patch)

    def wait_ready(self) -> Object:
        """Until the newest generation is."""

        def is_ready(job: Object | None) -> bool:
            if condition(job, "Stalled")[0] == "True":
                raise AssertionError(f"the job is stalled: {(job or {})['status']['conditions']}")
            is_seen = job and job["status"].get("observedGeneration") == _generation(job)
            return bool(is_seen) and condition(job, "Ready")[0] == "True"

        return self.jobs.wait(is_ready, short_job.NAME, PATIENCE)

    def wait_until_saved(self, stage: str, attempt: int) -> None:
        """Until an attempt has saved a checkpoint of its own, or its output, which ends them."""
        folder = f"*/{stage}-*/attempt-{attempt}"
        saved = (f"{folder}/steps/step-*", f"{folder}/output")
        deadline = time.monotonic() + PATIENCE
        while not any(any(self.checkpoints.glob(pattern)) for pattern in saved):
            assert time.monotonic() < deadline, f"{stage}, attempt {attempt}, has saved nothing"
            time.sleep(0.1)

    def pod(self, stage: str, attempt: int, index: int) -> Object:
        labels = {
            "rlhf.dev/stage": stage,
            "rlhf.dev/attempt": str(attempt),
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        (pod,) = self.jobs.client.list("v1/pods", self.jobs.namespace, labels=selector)
        return pod

    def lose_machine(self, pod: Object) -> None:
        """The pod's node loses its power: the pod's processes are gone, and nobody says so."""
        self.kubelet.lose_node(pod["spec"]["nodeName"])
        self.kubelet.kill(pod)

    def give_up_machine(self, pod: Object) -> None:
        """An administrator says that the pod's node will not come back."""
        self._nodes[pod["spec"]["nodeName"]].take_out_of_service()

    def metric(self, name: str, **labels: str) -> float:
        """What the operator tells Prometheus; 0 where it tells nothing."""
        url = f"http://127.0.0.1:{self.operator.health_port}/metrics"
        with OPENER.open(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = (sample for family in families for sample in family.samples)
        found = (s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
        return next(found, 0.0)

    def ended_well(self) -> list[str]:
        """The stages whose success was told, in order."""
        told = [note for reason, note in self.jobs.events() if reason == "StageSucceeded"]
        return [note.partition(":")[0] for note in told]


def _generation(job: Object) -> int:
    generation: int = job["metadata"]["generation"]
    return generation


@contextmanager
def a_training_cluster(
    installed: ControlPlane, fake_nodes: FakeNodes, namespace: str, directory: Path
) -> Iterator[TrainingCluster]:
    """Two nodes of two devices, an operator, and a kubelet that runs pods as processes."""
    nodes = [fake_nodes.add({short_job.DEVICE: 2}) for _ in range(2)]
    kubeconfig = limited(installed, namespace)
    allow_reviews(installed, namespace)
    (port,) = free_ports(1)
    flags = (
        *("--lease-namespace", namespace),
        *("--progress-port", str(port), "--progress-url", f"http://127.0.0.1:{port}"),
    )
    log = directory / "operator.log"
    operator = OperatorProcess(kubeconfig, [namespace], log, *flags)
    pods = Processes(directory / "pods", short_job.ON_THE_CPU | warm.trainers())
    operator.start()
    try:
        with Kubelet(installed.kubeconfig, pods, nodes) as kubelet:
            jobs = Jobs(installed.client, namespace)
            yield TrainingCluster(installed, jobs, operator, kubelet, nodes)
    finally:
        operator.end()
        print(operator.log()[-8000:])
        for node in nodes:
            fake_nodes.remove(node)
