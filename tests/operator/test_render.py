"""The Kubernetes objects of one attempt."""

from __future__ import annotations

import json
import re

import pytest
from builders import UID, a_job
from rendering import (
    HASH,
    container,
    environment,
    labels,
    mounts,
    pod,
    rendered,
    stage_file,
    volume,
)
from rlhf_api.stages import PPOStage
from rlhf_operator.names import child_name, child_of, service_name
from rlhf_operator.render import Platform, preview, render


def test_an_attempt_is_a_job_a_service_a_config_and_a_claim() -> None:
    objects = rendered("ppo")
    assert list(objects) == ["PersistentVolumeClaim", "ConfigMap", "Service", "Job"]
    names = {kind: item["metadata"]["name"] for kind, item in objects.items()}
    assert names == {
        "PersistentVolumeClaim": "tiny-checkpoints",
        "ConfigMap": "tiny-ppo-3",
        "Service": "tiny-ppo-3",
        "Job": "tiny-ppo-3",
    }


def test_rendering_is_pure() -> None:
    assert rendered("ppo") == rendered("ppo")


def test_the_gang_starts_and_ends_as_a_whole() -> None:
    spec = rendered("ppo", a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8}))["Job"][
        "spec"
    ]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    assert spec["backoffLimit"] == 0
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("stage", ["prepare", "sft"])
def test_nobody_ends_a_gang_to_save_a_node(stage: str) -> None:
    template = rendered(stage)["Job"]["spec"]["template"]
    assert template["metadata"]["annotations"].items() >= {
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
        ("karpenter.sh/do-not-disrupt", "true"),
    }


def test_a_deadline_is_set_where_the_stage_has_one() -> None:
    job = a_job().with_spec("stages.ppo.retry", {"deadlineSeconds": 60})
    assert rendered("ppo", job)["Job"]["spec"]["activeDeadlineSeconds"] == 60
    assert "activeDeadlineSeconds" not in rendered("ppo")["Job"]["spec"]


def test_pods_meet_at_pod_0() -> None:
    objects = rendered("ppo", a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8}))
    assert container(objects)["command"] == [
        "python", "-m", "rlhf_trainer", "launch",
        "--nnodes", "2",
        "--node-rank", "$(JOB_COMPLETION_INDEX)",
        "--nproc-per-node", "8",
        "--master-addr", "tiny-ppo-3-0.tiny-ppo-3",
        "--master-port", "29500",
        "config/stage.yaml",
    ]  # fmt: skip
    service = objects["Service"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"]
    assert service["selector"].items() <= labels(objects).items()
    assert pod(objects)["subdomain"] == "tiny-ppo-3"


def test_prepare_has_no_devices_no_service_and_may_use_the_network() -> None:
    objects = rendered("prepare", a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 8}))
    assert list(objects) == ["PersistentVolumeClaim", "ConfigMap", "Job"]
    assert container(objects)["command"][2:] == ["rlhf_trainer", "prepare", "config/stage.yaml"]
    assert "nvidia.com/gpu" not in json.dumps(objects["Job"])
    assert "HF_HUB_OFFLINE" not in environment(objects)
    assert objects["Job"]["spec"]["completions"] == 1


def test_training_is_offline_and_on_the_cpu_only_without_devices() -> None:
    assert environment(rendered("ppo"))["HF_HUB_OFFLINE"] == "1"
    assert environment(rendered("ppo"))["DS_ACCELERATOR"] == "cpu"
    on_gpus = a_job().with_spec("stages.ppo.resources", {"gpusPerNode": 1})
    assert "DS_ACCELERATOR" not in environment(rendered("ppo", on_gpus))
    assert environment(rendered("ppo", on_gpus))["RLHF_DEVICES"] == "1"  # or it would do without
    assert "RLHF_DEVICES" not in environment(rendered("ppo"))


def test_pods_without_devices_see_none_that_a_node_has() -> None:
    on_gpus = a_job().with_spec("resources", {"gpusPerNode": 1})
    assert environment(rendered("ppo"))["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert environment(rendered("prepare", on_gpus))["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(rendered("ppo", on_gpus))


def test_devices_and_memory_are_limits_and_cpu_is_a_request() -> None:
    asked = {
        "gpusPerNode": 8,
        "device": "amd.com/gpu",
        "cpu": "16",
        "memory": "256Gi",
        "shmSize": "32Gi",
    }
    objects = rendered("ppo", a_job().with_spec("resources", asked))
    assert container(objects)["resources"] == {
        "requests": {"cpu": "16", "memory": "256Gi", "amd.com/gpu": 8},
        "limits": {"memory": "256Gi", "amd.com/gpu": 8},
    }
    assert volume(objects, "shm") == {"emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}


def test_children_belong_to_the_job_and_carry_our_labels_alone() -> None:
    job = a_job().with_annotation("argocd.argoproj.io/tracking-id", "app:x")
    for kind, item in rendered("ppo", job).items():
        meta = item["metadata"]
        if kind == "PersistentVolumeClaim":
            assert "ownerReferences" not in meta  # it is retained
            continue
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("RLHFJob", UID, True)
        assert meta["labels"] == {
            "app.kubernetes.io/managed-by": "rlhf-operator",
            "rlhf.dev/job": "tiny",
            "rlhf.dev/stage": "ppo",
            "rlhf.dev/attempt": "3",
        }
        assert meta["annotations"]["argocd.argoproj.io/ignore-resource-updates"] == "true"
        assert "tracking-id" not in json.dumps(meta)


def test_a_claim_that_is_not_retained_goes_with_the_job() -> None:
    job = a_job().with_spec("checkpoints", {"claim": {"retain": False, "size": "1Gi"}})
    claim = rendered("ppo", job)["PersistentVolumeClaim"]
    assert claim["metadata"]["ownerReferences"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"


def test_an_existing_claim_is_used_and_not_made() -> None:
    job = a_job().with_spec("checkpoints", {"existingClaim": "shared", "subPath": "team/a"})
    objects = rendered("ppo", job)
    assert "PersistentVolumeClaim" not in objects
    assert volume(objects, "checkpoints") == {"persistentVolumeClaim": {"claimName": "shared"}}
    assert mounts(objects)["/rlhf/checkpoints"]["subPath"] == "team/a"


def test_the_stage_file_round_trips_and_names_all_that_the_stage_needs() -> None:
    objects = rendered("ppo")
    run = stage_file(objects)
    assert objects["ConfigMap"]["immutable"] is True
    assert (run.stage, run.attempt, run.hash) == ("ppo", 3, HASH)
    assert set(run.stages.present()) == {"ppo"}
    assert isinstance(run.config, PPOStage)
    assert run.lineage == "checkpoints/tiny-0a1b2c3d/ppo-abababababab"
    assert run.output == f"{run.lineage}/attempt-3"
    assert run.inputs["base"].path == "inputs/0/base"
    assert run.inputs["policy"].path == "checkpoints/tiny/sft/attempt-1/output"
    assert run.inputs["policy"].digest == "sha256:sft"
    assert run.inputs["reward"].digest == "sha256:reward"
    assert run.paths == {
        "models/base": "inputs/0/base",
        "data/prompts.jsonl": "inputs/1/prompts.jsonl",
    }
    assert run.sources == {"model": "sha256:base", "stages.ppo.data": "sha256:prompts"}


def test_an_explicit_null_reaches_the_trainer() -> None:
    job = a_job().with_spec("stages.ppo.rollout", {"importanceCap": None})
    ppo = stage_file(rendered("ppo", job)).stages.ppo
    assert ppo is not None
    assert ppo.rollout.importance_cap is None


def test_chinese_text_stays_readable_in_the_stage_file() -> None:
    job = a_job().with_spec("stages.sft.data.variables", {"name": "小智"})
    assert "小智" in rendered("sft", job)["ConfigMap"]["data"]["stage.yaml"]


def test_prepare_gets_every_source_and_all_stages() -> None:
    job = a_job().with_spec("evaluation", {"prompts": {"source": "data/heldout.jsonl"}})
    run = stage_file(rendered("prepare", job))
    assert set(run.stages.present()) == {"sft", "reward", "ppo", "dpo"}
    assert set(run.paths) == {
        "models/base", "data/sft.jsonl", "data/pairs.jsonl", "data/prompts.jsonl",
        "data/heldout.jsonl",
    }  # fmt: skip
    assert run.evaluation is not None


def test_the_reward_stage_answers_no_prompts() -> None:
    job = a_job().with_spec("evaluation", {"prompts": {"source": "data/heldout.jsonl"}})
    assert stage_file(rendered("reward", job)).evaluation is None
    assert stage_file(rendered("dpo", job)).evaluation is not None


def test_the_reward_stage_gets_the_sft_data_where_it_normalises_on_them() -> None:
    job = a_job().with_spec("stages.sft.data", {"source": "pvc://data/sft.jsonl", "limit": 9})
    job.with_spec("stages.sft.maxLength", 512)
    objects = rendered("reward", job)
    run = stage_file(objects)
    assert set(run.stages.present()) == {"reward"}
    assert run.demonstrations is not None
    assert run.demonstrations.data.limit == 9
    assert run.demonstrations.max_length == 512
    assert run.paths["pvc://data/sft.jsonl"] == "volumes/data/sft.jsonl"
    assert mounts(objects)["/rlhf/volumes/data"]["readOnly"]

    assert stage_file(rendered("ppo", job)).demonstrations is None
    without = rendered("reward", job.with_spec("stages.reward.normaliseOn", "all"))
    assert stage_file(without).demonstrations is None
    assert "/rlhf/volumes/data" not in mounts(without)


def test_a_reward_model_may_start_from_fresh_weights() -> None:
    run = stage_file(rendered("reward", a_job().with_spec("stages.reward.startFrom", "random")))
    assert run.inputs["policy"].path == "inputs/0/base"
    assert run.inputs["policy"].init == "random"


def test_a_stage_is_not_rendered_before_its_parents_have_outputs() -> None:
    with pytest.raises(ValueError, match="before sft has an output"):
        render(a_job().build(), "ppo", 1, HASH, "sha256:settings")


def test_sources_appear_where_the_stage_file_says() -> None:
    job = a_job().with_spec("model.source", "hf://Qwen/Qwen2.5-7B")
    job.with_spec("model.revision", "abc").with_spec("model.tokenizer", "oci://registry/tok:1")
    job.with_spec("stages.ppo.data.source", "pvc://datasets/rl/prompts.jsonl")
    objects = rendered("ppo", job)
    paths = stage_file(objects).paths
    assert paths["hf://Qwen/Qwen2.5-7B"].startswith("checkpoints/sources/")
    (image,) = {path for path in mounts(objects) if path.startswith("/rlhf/images/")}
    assert f"/rlhf/{paths['oci://registry/tok:1']}" == image
    assert paths["pvc://datasets/rl/prompts.jsonl"] == "volumes/datasets/rl/prompts.jsonl"
    assert mounts(objects)["/rlhf/volumes/datasets"]["readOnly"]
    assert mounts(objects)[image]["readOnly"]
    images = [item["image"] for item in pod(objects)["volumes"] if "image" in item]
    assert images == [{"reference": "registry/tok:1", "pullPolicy": "IfNotPresent"}]


def test_another_revision_is_fetched_to_another_place() -> None:
    def place(revision: str) -> str:
        job = a_job().with_spec("model.source", "hf://a/b").with_spec("model.revision", revision)
        return stage_file(rendered("ppo", job)).paths["hf://a/b"]

    assert place("one") != place("two")
    assert place("one") == place("one")


def test_two_files_of_one_claim_mount_it_once() -> None:
    job = a_job().with_spec("stages.ppo.data.source", "pvc://data/p.jsonl")
    job.with_spec("model.source", "pvc://data/model")
    objects = rendered("ppo", job)
    assert len([m for m in container(objects)["volumeMounts"] if "volumes/" in m["mountPath"]]) == 1
    names = [item["name"] for item in pod(objects)["volumes"]]
    assert len(names) == len(set(names))


def test_progress_goes_to_an_address_of_the_attempt_with_a_token_for_it_alone() -> None:
    objects = rendered("ppo", platform=Platform(progress_url="https://progress"))
    env = environment(objects)
    address = "https://progress/namespaces/default/rlhfjobs/tiny/ppo/3"
    assert env["KUBEFLOW_TRAINER_SERVER_URL"] == address
    assert env["KUBEFLOW_TRAINER_SERVER_TOKEN"] == "/rlhf/token/token"
    (source,) = volume(objects, "token")["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "rlhf.dev/progress"


def test_trainers_know_the_progress_server_by_the_authority_of_its_certificate() -> None:
    platform = Platform(progress_url="https://progress", progress_authority="PEM")
    objects = rendered("ppo", platform=platform)
    config = objects["ConfigMap"]
    assert config["data"]["progress-ca.crt"] == "PEM"
    assert volume(objects, "config")["configMap"] == {"name": config["metadata"]["name"]}
    path = environment(objects)["KUBEFLOW_TRAINER_SERVER_CA_CERT"]
    folder, _, name = path.rpartition("/")
    assert (mounts(objects)[folder]["name"], name) == ("config", "progress-ca.crt")
    plain = rendered("ppo", platform=platform._replace(progress_authority=None))
    assert "KUBEFLOW_TRAINER_SERVER_CA_CERT" not in environment(plain)


def test_the_termination_message_is_read_from_the_working_directory() -> None:
    only = container(rendered("ppo"))
    assert only["workingDir"] == "/rlhf"
    assert only["terminationMessagePath"] == "/rlhf/termination/message.json"
    assert only["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_placement_is_passed_on() -> None:
    asked = {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClass": "high",
        "runtimeClass": "nvidia",
        "serviceAccount": "trainer",
    }
    spec = pod(rendered("ppo", a_job().with_spec("resources", asked)))
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert spec["priorityClassName"] == "high"
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["serviceAccountName"] == "trainer"


def test_names_fit_a_dns_label_at_the_longest_job_name() -> None:
    job = a_job().named("a" * 40)
    for item in rendered("prepare", job, attempt=9999).values():
        assert len(f"{item['metadata']['name']}-9999") <= 63


def test_a_preview_shows_the_whole_pipeline_without_a_status() -> None:
    kinds = [item["kind"] for item in preview(a_job().build())]
    assert kinds.count("Job") == 5
    assert kinds.count("PersistentVolumeClaim") == 1
    assert kinds.count("Service") == 4


def test_the_service_of_a_job_whose_name_begins_with_a_digit_has_a_name_on_any_cluster() -> None:
    objects = rendered("reward", a_job().named("7" * 40), attempt=10_000)
    name = objects["Service"]["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)
    child = objects["Job"]["metadata"]["name"]
    assert child == objects["ConfigMap"]["metadata"]["name"] == "7" * 40 + "-reward-10000"
    assert pod(objects)["subdomain"] == name
    assert f"{child}-0.{name}" in container(objects)["command"]


def test_no_service_is_named_as_a_child_of_another_job_is() -> None:
    name = rendered("sft", a_job().named("7b"))["Service"]["metadata"]["name"]
    assert child_of(name) is None
    assert service_name(child_name("x7b", "sft", 3)) != name
