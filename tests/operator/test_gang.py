"""Gang schedulers: what each of them reads, each trap of each of them, and which one is picked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from builders import JobBuilder, a_job
from rendering import ANY, Objects, annotations, labels, pod, rendered
from rlhf_api.scheduling import Scheduling
from rlhf_operator.render import Defaults, Platform, gang_choice
from structural import crds, problems

SERVED = {
    "volcano": "scheduling.volcano.sh/v1beta1/PodGroup",
    "coscheduling": "scheduling.x-k8s.io/v1alpha1/PodGroup",
    "koordinator": "scheduling.sigs.k8s.io/v1alpha1/PodGroup",
    "kai": "scheduling.run.ai/v2alpha2/PodGroup",
    "native": "scheduling.k8s.io/v1alpha2/PodGroup",
    "kueue": "kueue.x-k8s.io/v1beta1/Workload",
}
NATIVE = {
    "1.35": "scheduling.k8s.io/v1alpha1/Workload",
    "1.36": "scheduling.k8s.io/v1alpha2/PodGroup",
    "1.37": "scheduling.k8s.io/v1beta1/PodGroup",
}
EVERY = Platform(served=frozenset(SERVED.values()))
ROLES = {"actor": 16, "critic": 8, "rollout": 8}


def four_nodes(gang: str = "auto", **resources: Any) -> JobBuilder:
    job = a_job().with_spec("resources", {"nodes": 4, "gpusPerNode": 8, **resources})
    return job.with_spec("scheduling", {"gang": gang})


def gang(name: str, served: str | None = None, **scheduling: Any) -> Objects:
    job = four_nodes().with_spec("scheduling", {"gang": name, **scheduling})
    kinds = frozenset([served] if served else SERVED.values())
    return rendered("ppo", job, Platform(served=kinds))


@pytest.mark.parametrize("name", ["volcano", "coscheduling", "koordinator", "kai"])
def test_a_gang_needs_all_of_its_pods(name: str) -> None:
    group = gang(name)["PodGroup"]
    assert group["spec"]["minMember"] == 4
    assert group["metadata"]["name"] == "tiny-ppo-3"
    assert group["metadata"]["ownerReferences"][0]["kind"] == "RLHFJob"
    assert f"{group['apiVersion']}/{group['kind']}" == SERVED[name]


@pytest.mark.parametrize(
    ("name", "scheduler", "mark"),
    [
        ("volcano", "volcano", ("annotations", "scheduling.k8s.io/group-name", "tiny-ppo-3")),
        ("volcano", "volcano", ("annotations", "volcano.sh/task-spec", "worker")),
        ("coscheduling", "scheduler-plugins-scheduler",
         ("labels", "scheduling.x-k8s.io/pod-group", "tiny-ppo-3")),
        ("koordinator", "koord-scheduler",
         ("labels", "pod-group.scheduling.sigs.k8s.io", "tiny-ppo-3")),
        ("kai", "kai-scheduler", ("annotations", "kai.scheduler/skip-podgrouper", "true")),
        ("kai", "kai-scheduler", ("annotations", "pod-group-name", "tiny-ppo-3")),
    ],
)  # fmt: skip
def test_pods_say_which_gang_they_are_of(
    name: str, scheduler: str, mark: tuple[str, str, str]
) -> None:
    template = gang(name)["Job"]["spec"]["template"]
    where, key, value = mark
    assert template["spec"]["schedulerName"] == scheduler
    assert template["metadata"][where][key] == value


def test_what_ties_pods_to_a_gang_stays_out_of_the_services_selector() -> None:
    objects = gang("coscheduling")
    assert set(objects["Service"]["spec"]["selector"]) < set(labels(objects))


def test_the_profile_of_coscheduling_is_the_platforms() -> None:
    platform = EVERY._replace(coscheduling_profile="gang")
    objects = rendered("ppo", four_nodes("coscheduling"), platform)
    assert pod(objects)["schedulerName"] == "gang"


@pytest.mark.parametrize("name", ["volcano", "coscheduling", "koordinator"])
def test_the_whole_gangs_resources_are_said_where_they_are_known(name: str) -> None:
    rdma = {"resource": "rdma/hca", "count": 2}
    job = four_nodes(name, cpu="500m", memory="1.5Gi", rdma=rdma)
    assert rendered("ppo", job, EVERY)["PodGroup"]["spec"]["minResources"] == {
        "cpu": "2000m",
        "memory": "6Gi",
        "nvidia.com/gpu": "32",
        "rdma/hca": "8",
    }
    unknown = a_job().with_spec("scheduling", {"gang": name})
    assert "minResources" not in rendered("ppo", unknown, EVERY)["PodGroup"]["spec"]


@pytest.mark.parametrize("name", ["volcano", "kai"])
def test_queue_and_priority_are_the_gangs(name: str) -> None:
    job = four_nodes(priorityClass="high").with_spec("scheduling", {"gang": name, "queue": "a"})
    spec = rendered("ppo", job, EVERY)["PodGroup"]["spec"]
    assert (spec["queue"], spec["priorityClassName"]) == ("a", "high")
    defaults = EVERY._replace(defaults=Defaults(queue="shared"))
    assert rendered("ppo", four_nodes(name), defaults)["PodGroup"]["spec"]["queue"] == "shared"


# Volcano


def test_volcano_never_mixes_task_members_and_sub_groups() -> None:
    plain = gang("volcano")["PodGroup"]["spec"]
    assert plain["minTaskMember"] == {"worker": 4}
    assert "subGroupPolicy" not in plain
    job = four_nodes("volcano").with_spec("stages.ppo.placement", ROLES)
    objects = rendered("ppo", job, EVERY)
    spec = objects["PodGroup"]["spec"]
    assert "minTaskMember" not in spec
    assert "volcano.sh/task-spec" not in annotations(objects)
    assert spec["minMember"] == 4
    indices = {
        group["name"]: group["labelSelector"]["matchExpressions"][0]["values"]
        for group in spec["subGroupPolicy"]
    }
    assert indices == {"actor": ["0", "1"], "critic": ["2"], "rollout": ["3"]}
    assert [group["subGroupSize"] for group in spec["subGroupPolicy"]] == [2, 1, 1]


def test_kai_sees_roles_as_one_gang_as_pods_of_one_job_have_the_same_labels() -> None:
    job = four_nodes("kai").with_spec("stages.ppo.placement", ROLES)
    objects = rendered("ppo", job, EVERY)
    assert objects["PodGroup"]["spec"] == {"minMember": 4}
    assert "kai.scheduler/subgroup-name" not in labels(objects)


# Native


def test_native_gangs_follow_the_served_version() -> None:
    new = gang("native", NATIVE["1.36"])
    assert new["PodGroup"]["spec"] == {"schedulingPolicy": {"gang": {"minCount": 4}}}
    assert pod(new)["schedulingGroup"] == {"podGroupName": "tiny-ppo-3"}
    newest = gang("native", NATIVE["1.37"])
    assert newest["PodGroup"]["apiVersion"] == "scheduling.k8s.io/v1beta1"
    old = gang("native", NATIVE["1.35"])
    (group,) = old["Workload"]["spec"]["podGroups"]
    assert group == {"name": "workers", "policy": {"gang": {"minCount": 4}}}
    assert pod(old)["workloadRef"] == {"name": "tiny-ppo-3", "podGroup": "workers"}


# Kueue


def test_kueue_gets_a_suspended_job_with_a_queue() -> None:
    job = gang("kueue", queue="research")["Job"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert job["spec"]["suspend"] is True
    assert set(gang("kueue", queue="research")) == set(gang("none"))


def test_the_end_of_an_attempt_s_time_is_not_left_to_kueue() -> None:
    """It would come first, and suspend the Job for ever instead of ending it."""
    job = four_nodes().with_spec("scheduling", {"gang": "kueue", "queue": "a"})
    job.with_spec("stages.ppo.retry", {"deadlineSeconds": 60})
    rendered_job = rendered("ppo", job, EVERY)["Job"]
    assert "kueue.x-k8s.io/max-exec-time-seconds" not in rendered_job["metadata"]["labels"]
    assert rendered_job["spec"]["activeDeadlineSeconds"] == 60


def test_no_job_is_suspended_that_nobody_would_admit() -> None:
    assert "suspend" not in gang("kueue")["Job"]["spec"]


# Topology

RACK = "topology.example.com/rack"


def with_topology(scheduler: str, level: str, mode: str, **more: Any) -> Objects:
    job = four_nodes(topology={"level": level, "mode": mode, **more})
    job.with_spec("scheduling", {"gang": scheduler, "queue": "a"})
    return rendered("ppo", job, EVERY)


@pytest.mark.parametrize(
    "name", ["none", "native", "coscheduling", "koordinator", "volcano", "kai"]
)
@pytest.mark.parametrize("mode", ["required", "preferred"])
def test_a_node_label_keeps_the_gangs_own_pods_together(name: str, mode: str) -> None:
    objects = with_topology(name, RACK, mode)
    rules = pod(objects)["affinity"]["podAffinity"][f"{mode}DuringSchedulingIgnoredDuringExecution"]
    term = rules[0] if mode == "required" else rules[0]["podAffinityTerm"]
    assert term["topologyKey"] == RACK
    assert term["labelSelector"]["matchLabels"].items() <= labels(objects).items()
    assert term["labelSelector"]["matchLabels"]["rlhf.dev/attempt"] == "3"


def test_topology_is_added_to_the_users_affinity() -> None:
    requirement = {"key": "a", "operator": "Exists"}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    own = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    job = four_nodes("none", affinity=own, topology={"level": RACK})
    found = pod(rendered("ppo", job, EVERY))["affinity"]
    assert found["nodeAffinity"] == own["nodeAffinity"]
    assert set(found) == {"nodeAffinity", "podAffinity"}


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        ("2", "required", {"mode": "hard", "highestTierAllowed": 2}),
        ("rack", "preferred", {"mode": "soft", "highestTierName": "rack"}),
    ],
)
def test_volcano_has_tiers_of_its_own(level: str, mode: str, expected: dict[str, Any]) -> None:
    objects = with_topology("volcano", level, mode)
    assert objects["PodGroup"]["spec"]["networkTopology"] == expected
    assert "affinity" not in pod(objects)


@pytest.mark.parametrize("mode", ["required", "preferred"])
def test_kai_finds_levels_in_a_topology_object(mode: str) -> None:
    objects = with_topology("kai", RACK, mode, name="cluster")
    constraint = {"topology": "cluster", f"{mode}TopologyLevel": RACK}
    assert objects["PodGroup"]["spec"]["topologyConstraint"] == constraint
    assert "affinity" not in pod(objects)


@pytest.mark.parametrize("mode", ["required", "preferred"])
def test_kueue_reads_topology_from_the_pod_template(mode: str) -> None:
    objects = with_topology("kueue", RACK, mode)
    assert annotations(objects)[f"kueue.x-k8s.io/podset-{mode}-topology"] == RACK
    assert "affinity" not in pod(objects)


# Which one


@pytest.mark.parametrize(
    ("scheduling", "served", "expected", "why"),
    [
        ({"gang": "kai"}, [], "kai", "spec.scheduling.gang names it"),
        ({}, ["volcano", "kai"], "volcano", "serves scheduling.volcano.sh/v1beta1/PodGroup."),
        ({"queue": "a"}, ["kai"], "kai", "v2alpha2/PodGroup; volcano is not served."),
        ({}, ["kai", "native"], "native", "volcano is not served, kai has no queue here"),
        ({}, ["kueue", "native"], "native", "kueue has no queue here"),
        ({"queue": "a"}, ["kueue", "native"], "kueue", "kueue.x-k8s.io/v1beta1/Workload"),
        ({"queue": "a"}, ["native"], "native", " It has no queues: scheduling.queue is not read."),
        ({"queue": "a"}, [], "none", " It has no queues: scheduling.queue is not read."),
        ({}, ["kueue"], "none", "No gang scheduler can be used; volcano is not served"),
        ({"gang": "none"}, ["volcano"], "none", "spec.scheduling.gang names it"),
    ],
)
def test_auto_takes_the_first_that_is_served_and_says_why(
    scheduling: dict[str, str], served: list[str], expected: str, why: str
) -> None:
    platform = Platform(served=frozenset(SERVED[name] for name in served))
    choice = gang_choice(Scheduling.model_validate(scheduling), platform)
    assert choice.name == expected
    assert why in choice.why


def test_the_order_of_auto_is_the_platforms() -> None:
    platform = EVERY._replace(gang_order=("kai", "volcano"), defaults=Defaults(queue="shared"))
    assert gang_choice(Scheduling(), platform).name == "kai"
    assert pod(rendered("ppo", four_nodes(), platform))["schedulerName"] == "kai-scheduler"


def test_a_clusters_queue_lets_auto_take_kueue() -> None:
    platform = Platform(served=frozenset([SERVED["kueue"]]), defaults=Defaults(queue="shared"))
    assert gang_choice(Scheduling(), platform).name == "kueue"
    job = rendered("ppo", four_nodes(), platform)["Job"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "shared"


def test_without_a_gang_scheduler_the_default_one_places_pods() -> None:
    assert "schedulerName" not in pod(rendered("ppo", four_nodes(), ANY))


def test_prepare_is_in_no_gang() -> None:
    objects = rendered("prepare", four_nodes("volcano"), EVERY)
    assert "schedulerName" not in pod(objects)
    assert "PodGroup" not in objects


# Schemas

KINDS = [(name, kind) for name, kind in SERVED.items() if name not in ("kueue", "native")]
KINDS += [("native", kind) for kind in NATIVE.values()]
MATRIX: list[dict[str, Any]] = [
    {},
    {"resources.cpu": "1.5", "resources.memory": "64Gi"},
    {"resources.priorityClass": "high", "scheduling.queue": "research"},
    {"resources.topology": {"level": "2"}},
    {"resources.topology": {"level": "rack", "mode": "preferred"}},
    {"resources.topology": {"level": RACK, "name": "cluster"}},
    {"stages.ppo.placement": ROLES},
    {"resources.deviceClaimTemplate": "eight", "resources.rdma": {"resource": "rdma/a"}},
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("changes", MATRIX)
def test_every_gang_object_fits_its_schema(name: str, kind: str, changes: dict[str, Any]) -> None:
    job = four_nodes(name)
    for path, value in changes.items():
        job.with_spec(path, value)
    objects = rendered("ppo", job, Platform(served=frozenset([kind])))
    group = objects[kind.rsplit("/", 1)[-1]]
    assert f"{group['apiVersion']}/{group['kind']}" == kind
    assert problems(group) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("minMembers", 4, "unexpected"),
        ("minMember", "4", "not of type"),
        ("minResources", {"cpu": "many"}, "does not match"),
        ("networkTopology", {"mode": "required"}, "not one of"),
        ("networkTopology", {"highestTierName": RACK}, "does not match"),
    ],
)
def test_the_schemas_refuse_what_they_should(path: str, value: Any, said: str) -> None:
    group = copy.deepcopy(gang("volcano")["PodGroup"])
    group["spec"][path] = value
    (problem,) = problems(group)
    assert said in problem


def test_there_is_a_schema_for_every_kind_that_is_rendered() -> None:
    written_by_kueue = "kueue.x-k8s.io/v1beta2/Workload"
    assert {kind for _, kind in KINDS} == set(crds()) - {written_by_kueue}
