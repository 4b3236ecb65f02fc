"""Devices, networks, nodes, storage, defaults: what a job asks for and what a pod gets."""

from __future__ import annotations

from typing import Any

import pytest
from builders import a_job
from rendering import (
    ANY,
    HASH,
    STATUS,
    container,
    environment,
    mounts,
    pod,
    rendered,
    sources,
    stage_file,
    volume,
)
from rlhf_api.affinity import Toleration
from rlhf_api.status import CheckpointRef, StageStatus
from rlhf_operator.inputs import input_hash, prepare_hash, settings
from rlhf_operator.render import Defaults, Platform, render
from rlhf_operator.render.quantities import times
from rlhf_operator.render.sub_groups import sub_groups

OUTPUTS = {"sft": "sha256:sft", "reward": "sha256:reward"}


@pytest.mark.parametrize(
    ("quantity", "factor", "expected"),
    [
        ("256Gi", 4, "1024Gi"),
        ("1.5Gi", 4, "6Gi"),
        ("500m", 3, "1500m"),
        ("0.1", 3, "0.3"),
        (16, 10, "160"),
        ("0", 5, "0"),
        (100, 1, "100"),
    ],
)
def test_a_gangs_total_is_exact(quantity: str | int, factor: int, expected: str) -> None:
    assert times(quantity, factor) == expected


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="'many' is not a quantity"):
        times("many", 2)


@pytest.mark.parametrize(
    "device", ["nvidia.com/gpu", "nvidia.com/mig-3g.40gb", "amd.com/gpu", "huawei.com/Ascend910"]
)
def test_any_device_is_asked_for_by_its_name(device: str) -> None:
    job = a_job().with_spec("resources", {"gpusPerNode": 4, "device": device})
    assert container(rendered("ppo", job))["resources"]["limits"] == {device: 4}


def test_devices_may_come_from_a_claim_template() -> None:
    asked = {"gpusPerNode": 4, "deviceClaimTemplate": "four-gpus"}
    objects = rendered("ppo", a_job().with_spec("resources", asked))
    assert container(objects)["resources"] == {"claims": [{"name": "devices"}]}
    assert pod(objects)["resourceClaims"] == [
        {"name": "devices", "resourceClaimTemplateName": "four-gpus"}
    ]
    assert "DS_ACCELERATOR" not in environment(objects)
    assert container(objects)["command"][8:10] == ["--nproc-per-node", "4"]


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("rdma/hca_shared_devices_a", {"NCCL_NET": "IB", "NCCL_SOCKET_IFNAME": "eth0"}),
        ("vpc.amazonaws.com/efa", {"FI_PROVIDER": "efa", "NCCL_SOCKET_IFNAME": "eth0"}),
    ],
)
def test_rdma_is_asked_for_and_used_without_a_silent_way_round(
    resource: str, expected: dict[str, str]
) -> None:
    rdma = {"resource": resource, "count": 4}
    job = a_job().with_spec("resources", {"gpusPerNode": 8, "rdma": rdma})
    objects = rendered("ppo", job)
    assert container(objects)["resources"]["limits"][resource] == 4
    assert container(objects)["resources"]["requests"][resource] == 4
    network = {"NCCL_NET", "NCCL_SOCKET_IFNAME", "FI_PROVIDER"}
    found = {name: v for name, v in environment(objects).items() if name in network}
    assert found == expected
    assert not network & set(environment(rendered("ppo")))
    assert resource not in str(rendered("prepare", job)["Job"])


def test_the_user_has_the_last_word_on_the_network() -> None:
    job = a_job().with_spec("resources", {"gpusPerNode": 8, "rdma": {"resource": "rdma/a"}})
    job.with_spec("env", [{"name": "NCCL_SOCKET_IFNAME", "value": "net1"}])
    assert environment(rendered("ppo", job))["NCCL_SOCKET_IFNAME"] == "net1"


NODE_AFFINITY = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100", "h200"]}]}
        ]
    }
}
ANTI_AFFINITY = {
    "preferredDuringSchedulingIgnoredDuringExecution": [
        {
            "weight": 10,
            "podAffinityTerm": {
                "labelSelector": {"matchLabels": {"noisy": "true"}},
                "topologyKey": "kubernetes.io/hostname",
            },
        }
    ]
}


def test_affinity_is_passed_on_as_it_is_written() -> None:
    affinity = {"nodeAffinity": NODE_AFFINITY, "podAntiAffinity": ANTI_AFFINITY}
    job = a_job().with_spec("resources", {"affinity": affinity})
    assert pod(rendered("ppo", job))["affinity"] == affinity
    assert "affinity" not in pod(rendered("prepare", job))
    assert "affinity" not in pod(rendered("ppo"))


@pytest.mark.parametrize(
    ("field", "value", "where", "expected"),
    [
        ("nodes", 2, ("Job", "completions"), 2),
        ("cpu", "8", "requests.cpu", "8"),
        ("memory", "1Gi", "limits.memory", "1Gi"),
        ("nodeSelector", {"a": "b"}, "nodeSelector", {"a": "b"}),
        ("tolerations", [{"operator": "Exists"}], "tolerations", [{"operator": "Exists"}]),
        ("affinity", {"nodeAffinity": NODE_AFFINITY}, "affinity", {"nodeAffinity": NODE_AFFINITY}),
        ("priorityClass", "high", "priorityClassName", "high"),
        ("runtimeClass", "nvidia", "runtimeClassName", "nvidia"),
        ("serviceAccount", "trainer", "serviceAccountName", "trainer"),
    ],
)
def test_a_stage_may_override_each_field_of_the_resources(
    field: str, value: Any, where: Any, expected: Any
) -> None:
    own = rendered("ppo", a_job().with_spec("stages.ppo.resources", {field: value}))
    other = rendered("dpo", a_job().with_spec("stages.ppo.resources", {field: value}))

    def found(objects: dict[str, Any]) -> Any:
        if isinstance(where, tuple):
            return objects["Job"]["spec"][where[1]]
        kind, _, name = where.partition(".")
        if name:
            return container(objects).get("resources", {}).get(kind, {}).get(name)
        return pod(objects).get(where)

    assert found(own) == expected
    assert found(other) != expected


def test_a_trainer_that_is_not_ours_gets_its_command_and_torchruns_variables() -> None:
    job = a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8})
    job.with_spec("stages.ppo.image", "registry/other:1")
    job.with_spec("stages.ppo.command", ["torchrun", "train.py", "--rank=$(PET_NODE_RANK)"])
    objects = rendered("ppo", job)
    assert container(objects)["image"] == "registry/other:1"
    assert container(objects)["command"] == ["torchrun", "train.py", "--rank=$(PET_NODE_RANK)"]
    pet = {name: value for name, value in sources(objects).items() if name.startswith("PET_")}
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert pet == {
        "PET_NNODES": {"value": "2"},
        "PET_NPROC_PER_NODE": {"value": "8"},
        "PET_MASTER_ADDR": {"value": "tiny-ppo-3-0.tiny-ppo-3"},
        "PET_MASTER_PORT": {"value": "29500"},
        "PET_NODE_RANK": {"valueFrom": {"fieldRef": {"fieldPath": path}}},
    }
    assert not [name for name in sources(rendered("dpo", job)) if name.startswith("PET_")]
    assert container(rendered("prepare", job))["image"] == "rlhf-trainer:0.1.0"


def test_image_and_command_of_a_stage_are_part_of_its_meaning_and_of_no_other() -> None:
    before = a_job().build()
    for path, value in (("image", "other:1"), ("command", ["train"])):
        after = a_job().with_spec(f"stages.ppo.{path}", value).build()
        changed = {
            stage
            for stage in before.spec.stages.present()
            if input_hash(before, stage, {}, OUTPUTS) != input_hash(after, stage, {}, OUTPUTS)
        }
        assert changed == {"ppo"}


def test_the_jobs_image_is_no_part_of_a_stage_with_its_own() -> None:
    own = a_job().with_spec("stages.ppo.image", "other:1")
    before, after = own.build(), own.with_spec("image", "trainer:2").build()
    changed = {
        stage
        for stage in before.spec.stages.present()
        if input_hash(before, stage, {}, OUTPUTS) != input_hash(after, stage, {}, OUTPUTS)
    }
    assert changed == {"sft", "reward", "dpo"}


def test_prepare_looks_again_when_a_stage_gets_a_trainer_whose_rows_are_not_judged() -> None:
    own = a_job().with_spec("stages.ppo.command", ["train"]).build()
    assert prepare_hash(own, {}) != prepare_hash(a_job().build(), {})


def test_two_sources_in_one_image_mount_it_once() -> None:
    job = a_job().with_spec("model.source", "oci://registry/all:1#model")
    job.with_spec("stages.ppo.data.source", "oci://registry/all:1#data/prompts.jsonl")
    objects = rendered("ppo", job)
    (name,) = [item["name"] for item in pod(objects)["volumes"] if "image" in item]
    assert volume(objects, name)["image"]["reference"] == "registry/all:1"
    (mount,) = [path for path, item in mounts(objects).items() if item["name"] == name]
    paths = stage_file(objects).paths
    assert f"/rlhf/{paths['oci://registry/all:1#model']}" == f"{mount}/model"
    assert (
        f"/rlhf/{paths['oci://registry/all:1#data/prompts.jsonl']}" == f"{mount}/data/prompts.jsonl"
    )


def test_a_tokenizer_of_its_own_stays_where_it_is_when_the_models_revision_changes() -> None:
    def place(revision: str) -> tuple[str, str]:
        job = a_job().with_spec(
            "model", {"source": "hf://a/model", "tokenizer": "hf://b/tokenizer"}
        )
        paths = stage_file(rendered("ppo", job.with_spec("model.revision", revision))).paths
        return paths["hf://a/model"], paths["hf://b/tokenizer"]

    (model, tokenizer), (other_model, other_tokenizer) = place("one"), place("two")
    assert model != other_model
    assert tokenizer == other_tokenizer


def test_checkpoints_in_an_object_store_have_a_sized_disk_and_no_claim() -> None:
    job = a_job().with_spec("checkpoints", {"uri": "s3://bucket/team", "secret": "s3"})
    objects = rendered("ppo", job)
    assert "PersistentVolumeClaim" not in objects
    assert volume(objects, "checkpoints")["emptyDir"]["sizeLimit"] == "500Gi"
    larger = rendered("ppo", job.with_spec("checkpoints.localSize", "2Ti"))
    assert volume(larger, "checkpoints")["emptyDir"]["sizeLimit"] == "2Ti"
    asked = [pod(o)["containers"][0]["resources"] for o in (objects, larger)]
    disk = [amounts.get("requests", {}).get("ephemeral-storage") for amounts in asked]
    assert disk == [None, "2Ti"]
    assert "/rlhf/secrets/s3" in mounts(objects)
    assert [v["secret"]["secretName"] for v in pod(objects)["volumes"] if "secret" in v] == ["s3"]
    run = stage_file(objects)
    assert (run.store, run.store_secret) == ("s3://bucket/team", "s3")
    assert stage_file(rendered("ppo")).store is None
    long, short = (pod(o)["terminationGracePeriodSeconds"] for o in (objects, rendered("ppo")))
    assert long > short
    assert pod(objects)["activeDeadlineSeconds"] - pod(rendered("ppo"))[
        "activeDeadlineSeconds"
    ] == (long - short)


@pytest.mark.parametrize(
    ("place", "of_ppo", "of_others"),
    [({}, 900, 120), ({"uri": "s3://bucket/team"}, 4500, 600)],
    ids=["claim", "object-store"],
)
def test_a_stage_has_the_time_to_save_that_it_asks_for_and_more_to_upload(
    place: dict[str, Any], of_ppo: int, of_others: int
) -> None:
    job = a_job().with_spec("stages.ppo.checkpointing", {"graceSeconds": 900})
    job = job.with_spec("checkpoints", place)
    for stage, seconds in (("prepare", of_others), ("sft", of_others), ("ppo", of_ppo)):
        assert pod(rendered(stage, job))["terminationGracePeriodSeconds"] == seconds


def test_an_output_in_an_object_store_is_found_on_the_disk_of_the_next_stage() -> None:
    job = a_job().with_spec("checkpoints", {"uri": "s3://bucket/team/"}).build()
    ref = CheckpointRef(uri="s3://bucket/team/tiny/sft/attempt-1/output", digest="sha256:sft")
    status = STATUS.model_copy(
        update={"stages": {**STATUS.stages, "sft": StageStatus(checkpoint=ref)}}
    )
    stored = job.model_copy(update={"status": status})
    objects = render(stored, "ppo", 1, HASH, "sha256:settings", ANY)
    inputs = stage_file({item["kind"]: item for item in objects}).inputs
    assert inputs["policy"].path == "checkpoints/tiny/sft/attempt-1/output"


def test_where_checkpoints_are_is_no_part_of_what_a_stage_is() -> None:
    stored = a_job().with_spec("checkpoints", {"uri": "s3://bucket/team"}).build()
    outputs = dict.fromkeys(("sft", "reward"), "sha256:0")
    for name in ("sft", "ppo"):
        assert input_hash(stored, name, {}, outputs) == input_hash(
            a_job().build(), name, {}, outputs
        )
    assert prepare_hash(stored, {}) == prepare_hash(a_job().build(), {})


# A cluster's defaults

DEFAULTS = Defaults(
    image="registry/trainer:2",
    queue="shared",
    storage_class="fast",
    node_selector={"pool": "gpu", "zone": "a"},
    tolerations=(Toleration(key="gpu", operator="Exists"),),
)
CLUSTER = Platform(defaults=DEFAULTS)


def test_a_clusters_defaults_fill_what_a_job_leaves_open() -> None:
    objects = rendered("ppo", a_job().with_spec("resources", {"gpusPerNode": 1}), CLUSTER)
    assert container(objects)["image"] == "registry/trainer:2"
    assert objects["PersistentVolumeClaim"]["spec"]["storageClassName"] == "fast"
    assert pod(objects)["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert pod(objects)["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_a_jobs_own_fields_win_over_the_clusters() -> None:
    job = a_job().with_spec("image", "own:1").with_spec("scheduling", {"queue": "mine"})
    job.with_spec("checkpoints", {"claim": {"storageClass": "slow"}})
    own = {"key": "spot", "operator": "Exists"}
    job.with_spec(
        "resources", {"gpusPerNode": 1, "nodeSelector": {"zone": "b"}, "tolerations": [own]}
    )
    job.with_spec("scheduling", {"gang": "kueue", "queue": "mine"})
    objects = rendered("ppo", job, CLUSTER)
    assert container(objects)["image"] == "own:1"
    assert objects["PersistentVolumeClaim"]["spec"]["storageClassName"] == "slow"
    assert pod(objects)["nodeSelector"] == {"pool": "gpu", "zone": "b"}
    assert pod(objects)["tolerations"] == [own, {"key": "gpu", "operator": "Exists"}]
    assert objects["Job"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mine"


def test_nodes_with_devices_are_for_pods_with_devices() -> None:
    job = a_job().with_spec("resources", {"gpusPerNode": 1})
    job.with_spec("stages.ppo.resources", {"gpusPerNode": 0})
    for stage in ("prepare", "ppo"):
        assert not {"nodeSelector", "tolerations"} & set(pod(rendered(stage, job, CLUSTER)))
    assert "nodeSelector" in pod(rendered("dpo", job, CLUSTER))


def test_no_default_of_a_cluster_makes_a_claim_beside_the_users_own_storage() -> None:
    for storage in ({"existingClaim": "shared"}, {"uri": "gs://bucket"}):
        objects = rendered("ppo", a_job().with_spec("checkpoints", storage), CLUSTER)
        assert "PersistentVolumeClaim" not in objects


def test_settings_cover_what_pods_are_started_with() -> None:
    def differs(stage: str, path: str, value: Any) -> bool:
        before = settings(a_job().build(), stage, "sha256:x")
        return settings(a_job().with_spec(path, value).build(), stage, "sha256:x") != before

    env = [{"name": "NCCL_DEBUG", "value": "INFO"}]
    assert differs("ppo", "env", env)
    assert differs("ppo", "stages.ppo.env", env)
    assert not differs("dpo", "stages.ppo.env", env)
    assert differs("prepare", "env", env)
    assert differs("prepare", "model.secret", "hub")
    assert differs("prepare", "resources", {"serviceAccount": "other"})
    assert not differs("prepare", "resources", {"nodes": 4})
    assert differs("ppo", "imagePullPolicy", "Always")
    assert differs("ppo", "checkpoints", {"existingClaim": "other"})
    assert not differs("ppo", "checkpoints", {"claim": {"size": "900Gi", "retain": False}})
    assert not differs("ppo", "ttlSecondsAfterFinished", 60)


# Roles on GPUs of their own


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (None, []),
        (
            {"actor": 16, "critic": 8, "reference": 4, "reward": 4, "rollout": 16},
            [
                ("actor", (0, 1)),
                ("critic", (2,)),
                ("reference-reward", (3,)),
                ("rollout", (4, 5)),
            ],
        ),
        ({"actor": 4, "critic": 4}, [("actor-critic", (0,))]),
        (
            {"actor": 12, "rollout": 12},
            [("actor", (0,)), ("actor-rollout", (1,)), ("rollout", (2,))],
        ),
    ],
)
def test_pods_with_the_same_roles_are_one_sub_group(placement: Any, expected: Any) -> None:
    job = a_job().with_spec("resources", {"nodes": 6, "gpusPerNode": 8})
    if placement:
        job.with_spec("stages.ppo.placement", placement)
    assert sub_groups(job.build().spec, "ppo") == expected
    assert sub_groups(job.build().spec, "dpo") == []


def test_where_roles_are_placed_is_no_part_of_what_they_compute() -> None:
    before = a_job().build()
    after = a_job().with_spec("stages.ppo.placement", {"actor": 4, "rollout": 4}).build()
    assert input_hash(before, "ppo", {}, OUTPUTS) == input_hash(after, "ppo", {}, OUTPUTS)
    assert settings(before, "ppo", "sha256:x") != settings(after, "ppo", "sha256:x")


def test_nothing_is_known_of_any_cluster() -> None:
    assert ANY.served == frozenset()
