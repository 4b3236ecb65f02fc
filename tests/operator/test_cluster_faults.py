"""What clusters do to a job, and what an operator needs of one; on a real control plane."""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, succeed
from cluster.nodes import FakeNode
from cluster_jobs import (
    JOBS,
    Jobs,
    Object,
    condition,
    manifest,
    stage,
    wait_until,
)
from kubernetes.aio.client import ApiClient
from kubernetes.aio.config import load_kube_config
from kubernetes.client import ApiException
from operator_process import OperatorProcess
from operator_rights import limited
from rlhf_api.status import JobStatus, StageStatus
from rlhf_operator.api import Api, client_settings
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.controller import OutOfDate
from rlhf_operator.render import Platform
from structural import crds

Run = Callable[..., OperatorProcess]
POLICIES = "admissionregistration.k8s.io/v1"
LEASES = "coordination.k8s.io"
CRD = Path(__file__).parents[2] / "crds" / "rlhf.dev_rlhfjobs.yaml"


def test_a_role_in_one_namespace_is_enough(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    operator = run_operator(kubeconfig=limited(installed, jobs.namespace))
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_ready()
    generation = jobs.patch({"spec": {"stages": {"sft": {"epochs": 3}}}})["metadata"]["generation"]
    jobs.wait(lambda job: (job or {})["status"]["observedGeneration"] == generation)
    jobs.wait_ready()
    assert "403" not in operator.log()


@pytest.mark.parametrize("scope", ["two of them", "all"])
def test_several_namespaces_are_served(
    installed: ControlPlane,
    jobs: Jobs,
    run_operator: Run,
    play: Callable[..., Kubelet],
    scope: str,
) -> None:
    other = Jobs(installed.client, f"{jobs.namespace}-b")
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}}
    installed.client.create(made)
    play(succeed)
    run_operator(namespaces=() if scope == "all" else (jobs.namespace, other.namespace))
    for of in (jobs, other):
        of.create(manifest(of.namespace, stages="sft"))
    jobs.wait_ready()
    other.wait_ready()
    installed.client.delete("v1/namespaces", other.namespace)


def test_a_newer_resource_that_is_taken_back_lets_jobs_go_on(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    """Its new default enters and leaves a job that nobody writes without another version of it."""
    play(succeed)
    operator = run_operator()
    made = manifest(jobs.namespace, stages="sft reward")
    made["spec"]["stages"]["sft"]["gate"] = {"approval": True}
    jobs.create(made)
    sft = stage(jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True"), "sft")
    older = yaml.safe_load(CRD.read_text("utf-8"))
    newer = copy.deepcopy(older)
    schema = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = schema["properties"]["stages"]["properties"]["sft"]["properties"]
    fields["newKnob"] = {"type": "number", "default": 0.5}
    try:
        installed.client.define(newer)
        wait_for_knob(jobs, is_there=True)
        operator.terminate()  # its watch may show jobs by the older resource for two minutes
        operator.start()
        jobs.patch({"metadata": {"annotations": {"rlhf.dev/approve-sft": sft["hash"]}}})
        jobs.wait(lambda job: condition(job, "Reconciling") == ("True", "ResourceIsNewer"))
    finally:
        installed.client.define(older)
    wait_for_knob(jobs, is_there=False)
    seen = {"metadata": {"annotations": {"example.org/seen": "yes"}}}  # or in a minute, by itself
    installed.client.patch("batch/v1/jobs", "tiny-sft-1", seen, jobs.namespace)
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1, "reward": 1}


def wait_for_knob(jobs: Jobs, *, is_there: bool) -> None:
    """In the job as the API server shows it, which answers 429 while it takes a schema over."""

    def has_come_or_gone(job: Object | None) -> bool:
        return ("newKnob" in (job or {})["spec"]["stages"]["sft"]) is is_there

    jobs.client.wait_for(JOBS, "tiny", has_come_or_gone, jobs.namespace)


def allow_few(jobs: Jobs, hard: dict[str, str]) -> None:
    """The quota `few` in their namespace, once it is counted by."""

    def is_counted(quota: Object | None) -> bool:
        return "hard" in (quota or {}).get("status", {})

    meta = {"name": "few", "namespace": jobs.namespace}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}}
    jobs.client.create(quota)
    jobs.client.wait_for("v1/resourcequotas", "few", is_counted, jobs.namespace)


def test_a_quota_is_a_reason_to_wait(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    allow_few(jobs, {"count/jobs.batch": "0"})
    play(succeed)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    job = jobs.wait(lambda job: condition(job, "Ready")[1] == "QuotaExceeded")
    assert condition(job, "Stalled")[0] == "False"


def test_pods_that_a_quota_refuses_are_told_in_its_words(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    allow_few(jobs, {"requests.nvidia.com/gpu": "4"})
    play(succeed)
    run_operator(kubeconfig=limited(installed, jobs.namespace))
    jobs.create(manifest(jobs.namespace, stages="sft"))
    words = "exceeded quota: few, requested: requests.nvidia.com/gpu=4, limited: "
    said = f"1 of 2 pods could be made: {words}requests.nvidia.com/gpu=4."
    job = jobs.wait(lambda job: stage(job, "sft").get("message") == said)
    assert condition(job, "Scheduled") == ("False", "PodsRefused")


COST = 'Object{metadata: Object.metadata{labels: {"example.org/cost": "a"}}}'
MUTATIONS = (
    ("", "*", COST),
    ("batch", "*", COST),
    ("rlhf.dev", "*/*", COST),
    ("batch", "jobs", "Object{spec: Object.spec{ttlSecondsAfterFinished: 3600}}"),
    (
        "",
        "persistentvolumeclaims",
        'Object{spec: Object.spec{resources: Object.spec.resources{requests: {"storage": "7Gi"}}}}',
    ),
)
"""API group, resources, and what a policy of the cluster makes of them when they are written."""


def make_policies(jobs: Jobs) -> list[str]:
    """One for each mutation, in the jobs' namespace alone; their names."""
    names = [f"{jobs.namespace}-{number}" for number in range(len(MUTATIONS))]
    kind, inside = "MutatingAdmissionPolicy", {"kubernetes.io/metadata.name": jobs.namespace}
    for name, (group, resources, expression) in zip(names, MUTATIONS, strict=True):
        rule = {"apiGroups": [group], "apiVersions": ["*"], "resources": [resources]}
        apply = {"applyConfiguration": {"expression": expression}}
        spec = {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": inside},
                "resourceRules": [rule | {"operations": ["CREATE", "UPDATE"]}],
            },
            "mutations": [{"patchType": "ApplyConfiguration", **apply}],
            "reinvocationPolicy": "Never",
        }
        made = {"apiVersion": POLICIES, "metadata": {"name": name}}
        jobs.client.create({**made, "kind": kind, "spec": spec})
        jobs.client.create({**made, "kind": f"{kind}Binding", "spec": {"policyName": name}})
    return names


def are_in_force(jobs: Jobs) -> bool:
    """All of the policies: the API server takes each up by itself."""

    def made(item: Object, api: str, kind: str) -> Object:
        whole = {"apiVersion": api, "kind": kind, "metadata": {"name": "probe"}} | item
        return jobs.client.create(whole, jobs.namespace, dry_run=True)

    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    job = made({"spec": {"template": {"spec": pod}}}, "batch/v1", "Job")
    room = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = made({"spec": room}, "v1", "PersistentVolumeClaim")
    asked = jobs.client.create(manifest(jobs.namespace), dry_run=True)
    labelled = all("example.org/cost" in of["metadata"].get("labels", {}) for of in (job, asked))
    larger = claim["spec"]["resources"]["requests"]["storage"] == "7Gi"
    lasting = job["spec"].get("ttlSecondsAfterFinished") == 3600
    return labelled and larger and lasting and "labels" in made({}, "v1", "ConfigMap")["metadata"]


def test_what_policies_of_the_cluster_make_of_children_is_left_as_it_is(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    names = make_policies(jobs)
    try:
        wait_until(lambda: are_in_force(jobs))
        play(succeed)
        run_operator(kubeconfig=limited(installed, jobs.namespace))
        jobs.create(manifest(jobs.namespace, stages="sft reward ppo"))
        jobs.wait_ready()
        assert jobs.attempts() == {"sft": 1, "reward": 1, "ppo": 1}
        made = [*jobs.children("batch/v1/jobs"), *jobs.children("v1/services"), jobs.get()]
        assert {item["metadata"]["labels"]["example.org/cost"] for item in made} == {"a"}
        asked = installed.requests_of("operator", jobs.namespace)
        written = [r.resource for r in asked if r.verb in ("patch", "update") and r.group != LEASES]
        assert set(written) == {"rlhfjobs/status"}
        assert len(written) < 12
    finally:
        for name in names:
            for plural in ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"):
                jobs.client.delete(f"{POLICIES}/{plural}", name)


def test_a_policy_that_refuses_statuses_is_told_by_an_event_and_begins_nothing(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    """No condition can be written of it; other jobs go on."""
    name, kind = f"{jobs.namespace}-frozen", "ValidatingAdmissionPolicy"
    rule = {"apiGroups": ["rlhf.dev"], "apiVersions": ["*"], "resources": ["rlhfjobs/status"]}
    inside = {"matchLabels": {"kubernetes.io/metadata.name": jobs.namespace}}
    matched = {"namespaceSelector": inside, "resourceRules": [rule | {"operations": ["UPDATE"]}]}
    refused = {"expression": "object.metadata.name != 'tiny'", "message": "not on Fridays"}
    made = {"apiVersion": POLICIES, "metadata": {"name": name}}
    policy = {"matchConstraints": matched, "validations": [refused]}
    bound = {"policyName": name, "validationActions": ["Deny"]}

    def is_in_force() -> bool:
        try:
            jobs.client.patch(JOBS, "tiny", {"status": {}}, jobs.namespace, subresource="status")
        except ApiException as error:
            return "not on Fridays" in str(error)
        return False

    installed.client.create({**made, "kind": kind, "spec": policy})
    installed.client.create({**made, "kind": f"{kind}Binding", "spec": bound})
    try:
        jobs.create(manifest(jobs.namespace, stages="sft"))
        wait_until(is_in_force)
        play(succeed)
        run_operator(kubeconfig=limited(installed, jobs.namespace))
        jobs.create(manifest(jobs.namespace, "other", stages="sft"))
        jobs.wait_ready("other")
        wait_until(lambda: "StatusRefused" in dict(jobs.events()))
        assert "denied request: not on Fridays" in dict(jobs.events())["StatusRefused"]
        begun = jobs.children("batch/v1/jobs")
        assert {of["metadata"]["labels"]["rlhf.dev/job"] for of in begun} == {"other"}
    finally:
        for plural in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
            installed.client.delete(f"{POLICIES}/{plural}", name)
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1}


def first_attempt_never_ends(pod: Object) -> Script:
    """That of SFT; all else succeeds."""
    labels = pod["metadata"]["labels"]
    is_first = (labels["rlhf.dev/stage"], labels["rlhf.dev/attempt"]) == ("sft", "1")
    return Script(run_s=None) if is_first else succeed(pod)


def test_a_lost_node_is_waited_for_until_somebody_says_that_it_is_gone(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], gpus: list[FakeNode]
) -> None:
    kubelet = play(first_attempt_never_ends)
    run_operator()
    made = manifest(jobs.namespace, nodes=1, stages="sft")
    jobs.create(made)
    jobs.wait_running("sft")
    (pod,) = jobs.pods("sft")
    node = next(n for n in gpus if n.name == pod["spec"]["nodeName"])
    kubelet.lose_node(node.name)
    node.lose()
    job = jobs.wait(lambda job: stage(job, "sft").get("reason") == "NodeLost")
    assert stage(job, "sft")["attempt"] == 1
    node.take_out_of_service()
    jobs.wait_ready(timeout=60)
    assert jobs.attempts() == {"sft": 2}
    assert stage(jobs.get(), "sft")["faults"] == 0


def test_a_node_that_is_lost_while_no_operator_is_there_is_no_fault(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], gpus: list[FakeNode]
) -> None:
    """Its peer in the gang fails by itself, and is all that is left of the attempt."""

    kubelet = play(first_attempt_never_ends)
    operator = run_operator()
    made = manifest(jobs.namespace, nodes=2, stages="sft")
    made["spec"]["resources"]["gpusPerNode"] = 8
    jobs.create(made)
    jobs.wait_running("sft")
    operator.kill()
    lost, peer = jobs.pods("sft")
    node = next(n for n in gpus if n.name == lost["spec"]["nodeName"])
    kubelet.lose_node(node.name)
    node.lose()
    kubelet.kill(peer)
    wait_until(lambda: "FailureTarget" in ends(jobs))
    node.take_out_of_service()
    wait_until(lambda: "Failed" in ends(jobs))
    peers = [peer["metadata"]["name"]]
    wait_until(lambda: [pod["metadata"]["name"] for pod in jobs.pods("sft")] == peers)
    as_after_a_grace_period(jobs)
    operator.start()
    status = stage(jobs.wait(lambda job: "ended" in stage(job, "sft")), "sft")
    assert (status["ended"]["kind"], status["ended"]["reason"]) == ("Disruption", "NodeLost")
    assert (status["faults"], status["disruptions"]) == (0, 1)


def ends(jobs: Jobs) -> dict[str, Object]:
    """The conditions by which the Job controller ends the first attempt."""
    job = jobs.client.get("batch/v1/jobs", "tiny-sft-1", jobs.namespace)
    return {item["type"]: item for item in job["status"].get("conditions", [])}


def as_after_a_grace_period(jobs: Jobs) -> None:
    """Moves the Job's failure back, in place of minutes in which the lost pod stays."""
    early = ends(jobs)
    early["FailureTarget"]["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    status = {"status": {"conditions": list(early.values())}}
    plural = "batch/v1/jobs"
    jobs.client.patch(plural, "tiny-sft-1", status, jobs.namespace, subresource="status")


def test_an_etcd_that_was_restored_from_a_backup_trains_no_finished_stage_again(
    installed: ControlPlane,
    jobs: Jobs,
    run_operator: Run,
    play: Callable[..., Kubelet],
    gpus: list[FakeNode],
    tmp_path: Path,
) -> None:
    """Its versions go on above all that were, and what it holds is older than what is known."""
    trained: list[str] = []
    live = {"reward"}

    def noted(pod: Object) -> Script:
        trained.append(stage_of(pod))
        return Script(run_s=None) if stage_of(pod) in live else succeed(pod)

    def approve() -> None:
        job = jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True")
        mark = {"rlhf.dev/approve-sft": stage(job, "sft")["hash"]}
        jobs.patch({"metadata": {"annotations": mark}})

    play(noted)
    operator = run_operator()
    made = manifest(jobs.namespace, nodes=1, stages="sft reward")
    made["spec"]["stages"]["sft"]["gate"] = {"approval": True}
    jobs.create(made)
    jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True")
    wait_until(lambda: "Complete" in ends(jobs))  # else the Job controller may miss its pod
    installed.back_up(tmp_path / "backup")
    approve()
    jobs.wait_running("reward")
    installed.restore(tmp_path / "backup")
    for node in gpus:
        node.recover()
    wait_until(lambda: not operator.is_running)
    assert "etcd was restored from a backup" in operator.log()
    live.clear()
    operator.start()
    approve()
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1, "reward": 1}
    assert trained == ["prepare", "sft", "reward", "reward"]


def test_a_gang_that_does_not_fit_is_not_bound_and_says_why(
    jobs: Jobs,
    run_operator: Run,
    play: Callable[..., Kubelet],
    gpus: list[FakeNode],
    make_node: Callable[..., FakeNode],
) -> None:
    gpus[1].resize({"nvidia.com/gpu": 4})
    play(succeed)
    run_operator()
    jobs.create(manifest(jobs.namespace, nodes=4, stages="sft"))
    wait_until(lambda: len(jobs.pods("sft")) == 4)

    def says_why(job: Object | None) -> bool:
        return "nvidia.com/gpu" in (stage(job, "sft").get("message") or "")

    said = stage(jobs.wait(says_why), "sft")["message"]
    assert re.fullmatch(r"[0-3] of 4 pods fit: .*insufficient nvidia\.com/gpu\.", said)
    assert not any(pod["spec"].get("nodeName") for pod in jobs.pods("sft"))
    make_node({"nvidia.com/gpu": 4})
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1}


def test_two_jobs_that_each_need_all_devices_run_one_after_the_other(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(lambda pod: succeed(pod)._replace(run_s=0.5 * (stage_of(pod) == "sft")))
    run_operator()
    listed = jobs.client.request("GET", f"/api/v1/namespaces/{jobs.namespace}/pods")
    for name in ("one", "two"):
        made = manifest(jobs.namespace, name, nodes=2, stages="sft")
        made["spec"]["resources"]["gpusPerNode"] = 8
        jobs.create(made)
    for name in ("one", "two"):
        jobs.wait_ready(name)
        assert jobs.attempts(name) == {"sft": 1}
    held = list(holders_since(jobs, listed["metadata"]["resourceVersion"], pods=4))
    assert {"one"} in held
    assert {"two"} in held
    assert {"one", "two"} not in held


def holders_since(jobs: Jobs, version: str, pods: int) -> Iterator[set[str]]:
    """At each change, until so many pods of SFT have succeeded: nothing between is missed."""
    seen: dict[str, Object] = {}
    for _, pod in jobs.client.watch("v1/pods", jobs.namespace, version=version):
        if stage_of(pod) == "sft":
            seen[pod["metadata"]["uid"]] = pod
            yield holders(list(seen.values()))
        if [of["status"]["phase"] for of in seen.values()].count("Succeeded") == pods:
            return


def stage_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["rlhf.dev/stage"])


def holders(pods: list[Object]) -> set[str]:
    """The jobs of which a pod has a node's devices."""
    bound = [pod for pod in pods if pod["spec"].get("nodeName")]
    live = [pod for pod in bound if pod["status"]["phase"] not in ("Succeeded", "Failed")]
    return {pod["metadata"]["labels"]["rlhf.dev/job"] for pod in live}


def test_a_gang_scheduler_that_is_not_there_is_named(jobs: Jobs, run_operator: Run) -> None:
    run_operator()
    made = manifest(jobs.namespace, stages="sft")
    made["spec"]["scheduling"] = {"gang": "volcano"}
    jobs.create(made)
    job = jobs.wait(lambda job: condition(job, "Stalled")[0] == "True")
    assert condition(job, "Stalled")[1] == "Unsupported"
    assert jobs.children("batch/v1/jobs") == []


def test_a_gang_scheduler_that_goes_while_the_operator_runs_is_not_waited_for(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    crd = crds()["scheduling.volcano.sh/v1beta1/PodGroup"]
    where = ("apiextensions.k8s.io/v1/customresourcedefinitions", crd["metadata"]["name"])
    installed.client.define(crd)
    play(succeed)
    operator = run_operator()
    wait_until(lambda: "This process leads" in operator.log())
    installed.client.delete(*where)
    installed.client.wait_for(*where, lambda found: found is None)
    jobs.create(manifest(jobs.namespace, stages="sft"))
    job = jobs.wait_ready()
    assert job["status"]["scheduling"]["gang"] == "native"
    assert jobs.attempts() == {"sft": 1}


@pytest.mark.parametrize("kind", ["configmaps", "services"])
def test_a_child_that_somebody_deletes_before_its_pods_start_is_made_again(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], kind: str
) -> None:
    def chosen(pod: Object) -> Script:
        is_sft = pod["metadata"]["labels"]["rlhf.dev/stage"] == "sft"
        return Script(start_s=3600, run_s=None) if is_sft else succeed(pod)

    play(chosen)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    wait_until(lambda: jobs.client.find(f"v1/{kind}", "tiny-sft-1", jobs.namespace) is not None)
    first = jobs.client.get(f"v1/{kind}", "tiny-sft-1", jobs.namespace)["metadata"]["uid"]
    jobs.client.delete(f"v1/{kind}", "tiny-sft-1", jobs.namespace)

    def is_new() -> bool:
        found = jobs.client.find(f"v1/{kind}", "tiny-sft-1", jobs.namespace)
        return found is not None and found["metadata"]["uid"] != first

    wait_until(is_new)
    assert jobs.attempts() == {"sft": 1}


@pytest.mark.parametrize("plural", ["batch/v1/jobs", "v1/configmaps", "v1/services"])
def test_a_child_whose_owner_is_taken_away_gets_it_back(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], plural: str
) -> None:
    def chosen(pod: Object) -> Script:
        is_sft = pod["metadata"]["labels"]["rlhf.dev/stage"] == "sft"
        return Script(run_s=None) if is_sft else succeed(pod)

    play(chosen)
    run_operator()
    uid = jobs.create(manifest(jobs.namespace, stages="sft"))["metadata"]["uid"]
    jobs.wait_running("sft")
    before = jobs.client.get(plural, "tiny-sft-1", jobs.namespace)["metadata"]["uid"]
    nobody = {"metadata": {"ownerReferences": None}}
    jobs.client.patch(plural, "tiny-sft-1", nobody, jobs.namespace)

    def is_owned() -> bool:
        meta = jobs.client.get(plural, "tiny-sft-1", jobs.namespace)["metadata"]
        assert meta["uid"] == before
        return [owner["uid"] for owner in meta.get("ownerReferences", [])] == [uid]

    wait_until(is_owned)
    assert jobs.attempts() == {"sft": 1}


def test_what_pods_depend_on_is_put_back_while_they_run(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    def chosen(pod: Object) -> Script:
        is_sft = pod["metadata"]["labels"]["rlhf.dev/stage"] == "sft"
        return Script(run_s=None) if is_sft else succeed(pod)

    group, name = "scheduling.k8s.io/v1alpha2/podgroups", "tiny-sft-1"
    play(chosen)
    run_operator(kubeconfig=limited(installed, jobs.namespace))
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_running("sft")
    version = jobs.get()["metadata"]["resourceVersion"]
    selector = jobs.client.get("v1/services", name, jobs.namespace)["spec"]["selector"]
    wrong = {"spec": {"selector": {"rlhf.dev/stage": "other", "app": "mine"}}}
    jobs.client.patch("v1/services", name, wrong, jobs.namespace)

    def selects_its_pods() -> bool:
        service = jobs.client.get("v1/services", name, jobs.namespace)
        return bool(service["spec"]["selector"] == selector)

    wait_until(selects_its_pods)
    unseen = {"metadata": {"labels": {"rlhf.dev/job": None}}}
    jobs.client.patch("v1/configmaps", name, unseen, jobs.namespace)
    jobs.client.patch(group, name, {"metadata": {"finalizers": None}}, jobs.namespace)
    before = jobs.client.get(group, name, jobs.namespace)["metadata"]["uid"]
    jobs.client.delete(group, name, jobs.namespace)

    def is_as_it_was() -> bool:
        config = jobs.client.get("v1/configmaps", name, jobs.namespace)
        found = jobs.client.find(group, name, jobs.namespace)
        return (
            config["metadata"]["labels"].get("rlhf.dev/job") == "tiny"
            and found is not None
            and found["metadata"]["uid"] != before
        )

    wait_until(is_as_it_was)
    job = jobs.get()
    assert job["metadata"]["resourceVersion"] == version  # the status has not moved
    assert stage(job, "sft")["phase"] == "Running"


def test_a_status_is_put_onto_what_others_wrote_unless_a_pass_goes_by_it(
    installed: ControlPlane, jobs: Jobs
) -> None:
    """A tool that writes 24 annotations a second made a job of one second take 34."""
    begun = JobStatus(stages={"sft": StageStatus(attempt=1)})
    jobs.create(manifest(jobs.namespace, stages="sft"))

    async def write(foreign: Object) -> None:
        settings = client_settings()
        await load_kube_config(str(installed.kubeconfig), client_configuration=settings)
        api, cache = Api(ApiClient(settings)), Cache()
        cache.put(seen := jobs.get())
        jobs.patch({"metadata": {"annotations": foreign}})
        try:
            await KubernetesCluster(api, cache, Platform(), {}).write_status(seen, begun)
        finally:
            await api.close()

    asyncio.run(write({"example.com/seen": "1"}))
    assert jobs.attempts() == {"sft": 1}
    assert jobs.get()["metadata"]["annotations"] == {"example.com/seen": "1"}
    with pytest.raises(OutOfDate):
        asyncio.run(write({"rlhf.dev/approve-sft": "yes"}))


@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
def test_a_deleted_job_that_a_finalizer_keeps_holds_no_devices(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], propagation: str
) -> None:
    play(lambda pod: Script(run_s=None) if of_sft(pod) else succeed(pod))
    run_operator()
    made = manifest(jobs.namespace, stages="sft")
    made["metadata"]["finalizers"] = ["example.org/archive"]
    jobs.create(made)
    jobs.wait_running("sft")
    jobs.client.delete(JOBS, "tiny", jobs.namespace, propagation=propagation)
    if propagation == "Orphan":  # who asks for that wants them to stay
        wait_until(lambda: jobs.get()["metadata"]["finalizers"] == ["example.org/archive"])
        jobs.wait(lambda job: condition(job, "Suspended") == ("True", "Deleting"))
        time.sleep(1)
        assert [pod["metadata"].get("deletionTimestamp") for pod in jobs.pods("sft")] == [None] * 2
    else:
        jobs.wait(lambda job: condition(job, "Suspended") == ("True", "Deleting"))
        wait_until(lambda: not jobs.pods("sft"))
    jobs.patch({"metadata": {"finalizers": None}})
    jobs.wait(lambda job: job is None)


def of_sft(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"]["rlhf.dev/stage"] == "sft")
