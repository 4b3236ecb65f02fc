"""One table of manifests for every rule across fields: what breaks it, and the nearest that holds.

The rules are written here by what a user writes, so that the same table can try any other
implementation of them.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

FULL: dict[str, Any] = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "job"},
    "spec": {
        "model": {"source": "models/base"},
        "stages": {
            "sft": {"data": {"source": "sft.jsonl"}},
            "reward": {"data": {"source": "pairs.jsonl"}},
            "ppo": {"data": {"source": "prompts.jsonl"}},
            "dpo": {"data": {"source": "pairs.jsonl"}},
        },
    },
}
REMOVE = object()


class Case(NamedTuple):
    """A change to a valid manifest that breaks one rule, and one that does not."""

    rule: str
    bad: dict[str, Any]  # path below spec: value
    problem: str  # path of the problem
    good: dict[str, Any]


def manifest(changes: dict[str, Any]) -> dict[str, Any]:
    """The full manifest with values set, or removed, at paths below spec."""
    result = copy.deepcopy(FULL)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = result["spec"]
        for part in parents:
            place = place.setdefault(part, {})
        if value is REMOVE:
            del place[last]
        else:
            place[last] = value
    return result


NO_REWARD = {"stages.reward": REMOVE}
HTTP = {"stages.ppo.rewards.judge": {"http": {"url": "http://judge"}}}
MODEL = {"stages.ppo.rewards.judge": {"model": {"source": "models/reward"}}}
PPO, SFT, REWARD, DPO = "stages.ppo", "stages.sft", "stages.reward", "stages.dpo"

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
SOFT = "preferredDuringSchedulingIgnoredDuringExecution"
AVOIDED = f"resources.affinity.podAntiAffinity.{REQUIRED}[0]"
PREFERRED = f"resources.affinity.nodeAffinity.{SOFT}[0].preference.matchExpressions[0]"


def avoiding(selector: dict[str, Any]) -> dict[str, Any]:
    """Affinity: stay away from pods."""
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {REQUIRED: [term]}}


def preferring(requirement: dict[str, Any]) -> dict[str, Any]:
    """Affinity: rather go to nodes."""
    term = {"weight": 1, "preference": {"matchExpressions": [requirement]}}
    return {"nodeAffinity": {SOFT: [term]}}


def rows(stage: str, number: int) -> dict[str, Any]:
    """Rows of each optimizer step of a stage."""
    batch = {f"{stage}.globalBatchSize": number}
    return batch | ({f"{stage}.minibatchSize": number} if stage == PPO else {})


def cases_of_each_stage(stage: str) -> list[Case]:
    """Rules about a stage's pods, with the job's resources and with its own."""
    own = f"{stage}.resources"
    return [
        Case(
            "every_rank_has_rows",
            rows(stage, 15) | {own: {"nodes": 2, "processesPerNode": 8}},
            f"spec.{stage}.{'minibatchSize' if stage == PPO else 'globalBatchSize'}",
            rows(stage, 16) | {own: {"nodes": 2, "processesPerNode": 8}},
        ),
        Case(
            "processes_follow_gpus",
            {"resources.processesPerNode": 3, own: {"gpusPerNode": 2}},
            f"spec.{own}.processesPerNode",
            {"resources.processesPerNode": 2, own: {"gpusPerNode": 2}},
        ),
        Case(
            "devices_are_counted",
            {own: {"deviceClaimTemplate": "gpus"}},
            f"spec.{own}.gpusPerNode",
            {own: {"deviceClaimTemplate": "gpus"}, "resources.gpusPerNode": 1},
        ),
        Case(
            "rdma_serves_gpus",
            {own: {"rdma": {"resource": "rdma/hca"}}},
            f"spec.{own}.gpusPerNode",
            {own: {"rdma": {"resource": "rdma/hca"}, "gpusPerNode": 1}},
        ),
        Case(
            "rdma_is_not_the_device",
            {own: {"rdma": {"resource": "nvidia.com/gpu"}, "gpusPerNode": 1}},
            f"spec.{own}.rdma.resource",
            {own: {"rdma": {"resource": "nvidia.com/nic"}, "gpusPerNode": 1}},
        ),
        Case(
            "rdma_is_not_the_device",
            {"resources": {"rdma": {"resource": "a/b"}, "gpusPerNode": 1}, own: {"device": "a/b"}},
            f"spec.{own}.rdma.resource",
            {"resources": {"rdma": {"resource": "a/b"}, "gpusPerNode": 1}, own: {"device": "a/c"}},
        ),
        Case(
            "own_trainer_has_an_image",
            {f"{stage}.command": ["train"]},
            f"spec.{stage}.command",
            {f"{stage}.command": ["train"], f"{stage}.image": "mine"},
        ),
        Case(
            "own_trainer_has_a_volume",
            {f"{stage}.command": ["train"], f"{stage}.image": "mine"}
            | {"checkpoints": {"uri": "gs://models/a"}},
            f"spec.{stage}.command",
            {"checkpoints": {"uri": "gs://models/a"}},
        ),
    ]


def cases_of_topology(stage: str) -> list[Case]:
    """Rules about topologies, in a job of one stage."""
    alone = {"stages": {}, f"{stage}.data": {"source": "rows"}}
    level, named = {"level": "rack"}, {"level": "rack", "name": "racks"}
    own = f"{stage}.resources"
    return [
        Case(
            "kai_topology_has_a_name",
            alone | {"scheduling.gang": "kai", own: {"topology": level}},
            "spec.scheduling.gang",
            alone | {"scheduling.gang": "kai", own: {"nodes": 1}, "resources.topology": named},
        ),
        Case(
            "topology_name_is_kais",
            alone | {"scheduling.gang": "none", own: {"topology": named}},
            "spec.scheduling.gang",
            alone | {"scheduling.gang": "none", own: {"nodes": 1}, "resources.topology": level},
        ),
        Case(
            "tiers_are_volcanos",
            alone | {"scheduling.gang": "none", own: {"topology": {"level": "3"}}},
            "spec.scheduling.gang",
            alone | {"scheduling.gang": "none", own: {"topology": {"level": "3-tiers"}}},
        ),
    ]


CASES: list[Case] = [
    Case(
        "some_stage", {"stages": {}}, "spec.stages", {"stages": {"sft": {"data": {"source": "a"}}}}
    ),
    Case("ppo_has_reward", NO_REWARD, f"spec.{PPO}.rewards", NO_REWARD | HTTP),
    Case(
        "reward_stage_is_there",
        NO_REWARD | {f"{PPO}.rewards.own": {"stage": "reward"}},
        f"spec.{PPO}.rewards",
        {f"{PPO}.rewards.own": {"stage": "reward"}},
    ),
    Case(
        "critic_has_reward_model",
        NO_REWARD | HTTP | {f"{PPO}.critic": "reward"},
        f"spec.{PPO}.critic",
        NO_REWARD | MODEL | {f"{PPO}.critic": "reward"},
    ),
    Case(
        "reward_start_is_there",
        {SFT: REMOVE, f"{REWARD}.startFrom": "sft"},
        f"spec.{REWARD}.startFrom",
        {f"{REWARD}.startFrom": "sft"},
    ),
    Case(
        "demonstrations_are_there",
        {SFT: REMOVE, f"{REWARD}.normaliseOn": "demonstrations"},
        f"spec.{REWARD}.normaliseOn",
        {SFT: REMOVE, f"{REWARD}.normaliseOn": "auto"},
    ),
    Case(
        "demonstrations_are_there",
        {f"{SFT}.command": ["train"], "image": "mine", f"{REWARD}.normaliseOn": "demonstrations"},
        f"spec.{REWARD}.normaliseOn",
        {f"{SFT}.command": ["train"], "image": "mine"},
    ),
    Case(
        "adapters_are_handed_on_merged",
        {f"{SFT}.lora": {"output": "adapter"}},
        f"spec.{SFT}.lora.output",
        {f"{PPO}.lora": {"output": "adapter"}},
    ),
    Case(
        "adapters_are_handed_on_merged",
        {SFT: REMOVE, f"{REWARD}.lora": {"output": "adapter"}},
        f"spec.{REWARD}.lora.output",
        {SFT: REMOVE, f"{REWARD}.lora": {"output": "merged"}},
    ),
    Case(
        "adapters_are_handed_on_merged",
        {PPO: REMOVE, f"{REWARD}.lora": {"output": "adapter"}},
        f"spec.{REWARD}.lora.output",
        {PPO: REMOVE, f"{REWARD}.lora": {"output": "adapter"}}
        | {f"{REWARD}.command": ["train"], "image": "mine"},
    ),
    Case(
        "one_place_for_checkpoints",
        {"checkpoints": {"claim": {}, "existingClaim": "disk"}},
        "spec.checkpoints",
        {"checkpoints": {"existingClaim": "disk"}},
    ),
    Case(
        "volume_reaches_all_nodes",
        {"checkpoints": {"claim": {"accessMode": "ReadWriteOnce"}}, "resources": {"nodes": 2}},
        "spec.checkpoints.claim.accessMode",
        {"checkpoints": {"claim": {"accessMode": "ReadWriteOnce"}}},
    ),
    Case(
        "tolerations_make_sense",
        {"resources.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "spec.resources.tolerations[0].value",
        {"resources.tolerations": [{"key": "a", "operator": "Equal", "value": "b"}]},
    ),
    Case(
        "tolerations_make_sense",
        {"resources.tolerations": [{"value": "b"}]},
        "spec.resources.tolerations[0].key",
        {"resources.tolerations": [{"operator": "Exists"}]},
    ),
    Case(
        "tolerations_make_sense",
        {"resources.tolerations": [{"key": "a", "tolerationSeconds": 3}]},
        "spec.resources.tolerations[0].tolerationSeconds",
        {"resources.tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 3}]},
    ),
    Case(
        "micro_batch_fits",
        {f"{SFT}.globalBatchSize": 8, f"{SFT}.microBatchSize": 9},
        f"spec.{SFT}.microBatchSize",
        {f"{SFT}.globalBatchSize": 8, f"{SFT}.microBatchSize": 8},
    ),
    Case(
        "micro_batch_fits",
        {f"{PPO}.minibatchSize": 8, f"{PPO}.microBatchSize": 9},
        f"spec.{PPO}.microBatchSize",
        {f"{PPO}.minibatchSize": 8, f"{PPO}.microBatchSize": 8},
    ),
    Case(
        "every_rank_has_rows",
        {"resources": {"nodes": 4, "gpusPerNode": 8}, f"{DPO}.globalBatchSize": 31},
        f"spec.{DPO}.globalBatchSize",
        {"resources": {"nodes": 4, "gpusPerNode": 8}, f"{DPO}.globalBatchSize": 32},
    ),
    Case(
        "every_rank_has_rows",
        {f"{PPO}.resources": {"nodes": 2, "gpusPerNode": 8}, f"{PPO}.minibatchSize": 8},
        f"spec.{PPO}.minibatchSize",
        {f"{PPO}.resources": {"nodes": 1, "gpusPerNode": 8}, f"{PPO}.minibatchSize": 8},
    ),
    Case(
        "processes_follow_gpus",
        {f"{SFT}.resources": {"gpusPerNode": 4, "processesPerNode": 2}},
        f"spec.{SFT}.resources.processesPerNode",
        {f"{SFT}.resources": {"gpusPerNode": 0, "processesPerNode": 2}},
    ),
    Case(
        "offload_needs_partitions",
        {f"{SFT}.zero": {"stage": 0, "offload": "cpu"}},
        f"spec.{SFT}.zero.offload",
        {f"{SFT}.zero": {"stage": 2, "offload": "cpu"}},
    ),
    Case(
        "gate_holds_something",
        {f"{REWARD}.gate": {}},
        f"spec.{REWARD}.gate",
        {f"{REWARD}.gate": {"approval": True}},
    ),
    Case(
        "gate_holds_something",
        {f"{REWARD}.gate": {"metric": "eval/accuracy"}},
        f"spec.{REWARD}.gate",
        {f"{REWARD}.gate": {"metric": "eval/accuracy", "min": 0.0}},
    ),
    Case(
        "gate_holds_something",
        {f"{REWARD}.gate": {"min": 0.5}},
        f"spec.{REWARD}.gate.metric",
        {f"{REWARD}.gate": {"metric": "eval/accuracy", "max": 0.5}},
    ),
    Case(
        "gate_can_pass",
        {f"{REWARD}.gate": {"metric": "eval/loss", "min": 0.7, "max": 0.6}},
        f"spec.{REWARD}.gate.min",
        {f"{REWARD}.gate": {"metric": "eval/loss", "min": 0.6, "max": 0.6}},
    ),
    Case(
        "backoff_grows",
        {f"{SFT}.retry": {"backoffSeconds": 20, "maxBackoffSeconds": 10}},
        f"spec.{SFT}.retry.backoffSeconds",
        {f"{SFT}.retry": {"backoffSeconds": 10, "maxBackoffSeconds": 10}},
    ),
    Case(
        "rows_fit_stage",
        {f"{SFT}.data.format": "kto"},
        f"spec.{SFT}.data.format",
        {f"{SFT}.data.format": "sharegpt"},
    ),
    Case(
        "rows_fit_stage",
        {f"{DPO}.data.format": "kto"},
        f"spec.{DPO}.data.format",
        {f"{DPO}.data.format": "kto", f"{DPO}.loss": "kto"},
    ),
    Case(
        "rows_fit_stage",
        {f"{REWARD}.data.format": "text"},
        f"spec.{REWARD}.data.format",
        {f"{REWARD}.data.format": "ranked"},
    ),
    Case(
        "minibatches_divide",
        {f"{PPO}.globalBatchSize": 128, f"{PPO}.minibatchSize": 48},
        f"spec.{PPO}.minibatchSize",
        {f"{PPO}.globalBatchSize": 96, f"{PPO}.minibatchSize": 48},
    ),
    Case(
        "groups_fill_the_batch",
        {f"{PPO}.rollout.samplesPerPrompt": 5},
        f"spec.{PPO}.rollout.samplesPerPrompt",
        {f"{PPO}.rollout.samplesPerPrompt": 8},
    ),
    *(
        Case(
            "groups_have_members",
            {f"{PPO}.advantage": estimator},
            f"spec.{PPO}.rollout.samplesPerPrompt",
            {f"{PPO}.advantage": estimator, f"{PPO}.rollout.samplesPerPrompt": 2},
        )
        for estimator in ("grpo", "reinforce++-baseline")
    ),
    Case(
        "critic_is_used",
        {f"{PPO}.advantage": "reinforce++", f"{PPO}.critic": "shared"},
        f"spec.{PPO}.critic",
        {f"{PPO}.advantage": "reinforce++"},
    ),
    Case(
        "critic_is_used",
        {f"{PPO}.advantage": "reinforce++", f"{PPO}.criticWarmupRollouts": 2},
        f"spec.{PPO}.criticWarmupRollouts",
        {f"{PPO}.advantage": "gae", f"{PPO}.criticWarmupRollouts": 2},
    ),
    Case(
        "critic_warmup_ends",
        {f"{PPO}.rollouts": 3, f"{PPO}.criticWarmupRollouts": 3},
        f"spec.{PPO}.criticWarmupRollouts",
        {f"{PPO}.rollouts": 3, f"{PPO}.criticWarmupRollouts": 2},
    ),
    Case(
        "responses_have_lengths",
        {f"{PPO}.rollout": {"minNewTokens": 9, "maxNewTokens": 8}},
        f"spec.{PPO}.rollout.minNewTokens",
        {f"{PPO}.rollout": {"minNewTokens": 8, "maxNewTokens": 8}},
    ),
    Case(
        "overlong_buffer_fits",
        {f"{PPO}.overlongBuffer": 256},
        f"spec.{PPO}.overlongBuffer",
        {f"{PPO}.overlongBuffer": 255},
    ),
    Case(
        "adaptive_kl_has_a_start",
        {f"{PPO}.kl": {"coef": 0.0, "adaptive": {}}},
        f"spec.{PPO}.kl.coef",
        {f"{PPO}.kl": {"coef": 0.0}},
    ),
    Case(
        "reward_terms_have_one_source",
        {f"{PPO}.rewards.a": {"weight": 2.0}},
        f"spec.{PPO}.rewards.a",
        {f"{PPO}.rewards.a": {"weight": 2.0, "stage": "reward"}},
    ),
    Case(
        "reward_terms_have_one_source",
        {f"{PPO}.rewards.a": {"stage": "reward", "http": {"url": "http://judge"}}},
        f"spec.{PPO}.rewards.a",
        {f"{PPO}.rewards.a": {"http": {"url": "http://judge"}}},
    ),
    Case(
        "reward_terms_have_names",
        {f"{PPO}.rewards": {"a b": {"stage": "reward"}}},
        f"spec.{PPO}.rewards",
        {f"{PPO}.rewards": {"a_b": {"stage": "reward"}}},
    ),
    Case(
        "some_reward_counts",
        {f"{PPO}.rewards.a": {"weight": 0.0, "stage": "reward"}},
        f"spec.{PPO}.rewards",
        HTTP | {f"{PPO}.rewards.a": {"weight": 0.0, "stage": "reward"}},
    ),
    Case(
        "reward_models_are_trained",
        {f"{PPO}.rewards.a.model": {"source": "m", "init": "random"}},
        f"spec.{PPO}.rewards.a.model.init",
        {f"{PPO}.rewards.a.model": {"source": "m"}},
    ),
    Case(
        "settings_are_read",
        {f"{DPO}.loss": "ipo", f"{DPO}.labelSmoothing": 0.1},
        f"spec.{DPO}.labelSmoothing",
        {f"{DPO}.loss": "sigmoid", f"{DPO}.labelSmoothing": 0.1},
    ),
    Case(
        "addresses_have_shape",
        {"model.source": "hf:/Qwen/Qwen2.5-0.5B"},
        "spec.model.source",
        {"model.source": "hf/Qwen:1"},
    ),
    Case(
        "addresses_have_shape",
        {"model.source": "huggingface://Qwen/Qwen2.5-7B"},
        "spec.model.source",
        {"model.source": "hf://Qwen/Qwen2.5-7B"},
    ),
    Case(
        "addresses_have_shape",
        {f"{SFT}.data.evalSource": "pvc://Not_A_Claim/x"},
        f"spec.{SFT}.data.evalSource",
        {f"{SFT}.data.evalSource": "pvc://claim/x.jsonl"},
    ),
    Case(
        "addresses_stay_inside",
        {f"{SFT}.data.source": "pvc://claim/../../etc/passwd"},
        f"spec.{SFT}.data.source",
        {f"{SFT}.data.source": "../data/sft.jsonl"},
    ),
    Case(
        "hub_fields_have_a_hub",
        {"model.revision": "main"},
        "spec.model.revision",
        {"model": {"source": "hf://Qwen/Qwen2.5-7B", "revision": "main"}},
    ),
    Case(
        "hub_fields_have_a_hub",
        {f"{SFT}.data.split": "test"},
        f"spec.{SFT}.data.split",
        {f"{SFT}.data": {"source": "hf://owner/rows", "split": "test"}},
    ),
    Case(
        "addresses_have_shape",
        {"model.source": "oci://registry/image#"},
        "spec.model.source",
        {"model.source": "oci://registry/image:1#models/base"},
    ),
    Case(
        "addresses_stay_inside",
        {"model.source": "oci://registry/image#../etc"},
        "spec.model.source",
        {"model.source": "oci://registry/image#a..b"},
    ),
    Case(
        "secrets_of_sources_are_used",
        {f"{SFT}.data.secret": "hub"},
        f"spec.{SFT}.data.secret",
        {f"{SFT}.data": {"source": "local", "evalSource": "s3://rows/eval", "secret": "hub"}},
    ),
    Case(
        "one_place_for_checkpoints",
        {"checkpoints": {"claim": {}, "existingClaim": "disk", "subPath": "a"}},
        "spec.checkpoints",
        {"checkpoints": {"claim": {}, "subPath": "a"}},
    ),
    Case(
        "claim_has_room",
        {"checkpoints": {"claim": {"size": "0.0Gi"}}},
        "spec.checkpoints.claim.size",
        {"checkpoints": {"claim": {"size": "0.5Gi"}}},
    ),
    Case(
        "claim_has_room",
        {"checkpoints": {"claim": {"size": 0}}},
        "spec.checkpoints.claim.size",
        {"checkpoints": {"claim": {"size": 2**63 - 1}}},
    ),
    Case(
        "bytes_have_a_unit",
        {"checkpoints": {"claim": {"size": 500}}},
        "spec.checkpoints.claim.size",
        {"checkpoints": {"claim": {"size": 2**20}}},
    ),
    Case(
        "bytes_have_a_unit",
        {"checkpoints": {"uri": "s3://models/a", "localSize": "500"}},
        "spec.checkpoints.localSize",
        {"checkpoints": {"uri": "s3://models/a", "localSize": "1024Ki"}},
    ),
    Case(
        "bytes_have_a_unit",
        {"resources": {"memory": 64}},
        "spec.resources.memory",
        {"resources": {"memory": 0}},
    ),
    Case(
        "bytes_have_a_unit",
        {"resources": {"memory": "64000m"}},
        "spec.resources.memory",
        {"resources": {"memory": "64000000"}},
    ),
    Case(
        "bytes_have_a_unit",
        {f"{SFT}.resources": {"shmSize": "1023.9Ki"}},
        "spec.stages.sft.resources.shmSize",
        {f"{SFT}.resources": {"shmSize": "0.001Gi"}},
    ),
    Case(
        "folder_is_in_a_claim",
        {"checkpoints": {"uri": "s3://models/a", "secret": "keys", "subPath": "a"}},
        "spec.checkpoints.subPath",
        {"checkpoints": {"uri": "s3://models/a", "secret": "keys"}},
    ),
    Case(
        "checkpoint_secret_is_used",
        {"checkpoints": {"claim": {}, "secret": "keys"}},
        "spec.checkpoints.secret",
        {"checkpoints": {"claim": {}}},
    ),
    Case(
        "local_size_is_used",
        {"checkpoints": {"claim": {}, "localSize": "2Ti"}},
        "spec.checkpoints.localSize",
        {"checkpoints": {"uri": "s3://models/a", "localSize": "2Ti"}},
    ),
    Case(
        "volume_reaches_all_nodes",
        {
            "checkpoints": {"claim": {"accessMode": "ReadWriteOncePod"}},
            f"{SFT}.resources": {"nodes": 2},
        },
        "spec.checkpoints.claim.accessMode",
        {
            "checkpoints": {"claim": {"accessMode": "ReadWriteMany"}},
            f"{SFT}.resources": {"nodes": 2},
        },
    ),
    Case(
        "tolerations_make_sense",
        {f"{SFT}.resources": {"tolerations": [{"operator": "Exists"}, {"value": "b"}]}},
        f"spec.{SFT}.resources.tolerations[1].key",
        {f"{SFT}.resources": {"tolerations": [{"operator": "Exists"}]}},
    ),
    Case(
        "label_keys_are_names",
        {"resources.nodeSelector": {"a key": "x"}},
        "spec.resources.nodeSelector",
        {"resources.nodeSelector": {"example.com/key": "x"}},
    ),
    Case(
        "label_keys_are_names",
        {"resources.nodeSelector": {"a" * 64: "x"}},
        "spec.resources.nodeSelector",
        {"resources.nodeSelector": {"a" * 63: "x"}},
    ),
    *(
        Case(
            "queue_is_read",
            {"scheduling": {"gang": gang, "queue": "research"}},
            "spec.scheduling.queue",
            {"scheduling": {"gang": queued, "queue": "research"}},
        )
        for gang, queued in (("native", "auto"), ("coscheduling", "kai"), ("none", "kueue"))
    ),
    Case(
        "label_keys_are_names",
        {"resources.affinity": avoiding({"matchLabels": {"-a": "b"}})},
        f"spec.{AVOIDED}.labelSelector.matchLabels",
        {"resources.affinity": avoiding({"matchLabels": {"a": "b"}})},
    ),
    Case(
        "requirements_have_values",
        {"resources.affinity": preferring({"key": "a", "operator": "In"})},
        f"spec.{PREFERRED}.values",
        {"resources.affinity": preferring({"key": "a", "operator": "In", "values": ["b"]})},
    ),
    Case(
        "requirements_have_values",
        {"resources.affinity": preferring({"key": "a", "operator": "Exists", "values": ["b"]})},
        f"spec.{PREFERRED}.values",
        {"resources.affinity": preferring({"key": "a", "operator": "Exists", "values": []})},
    ),
    Case(
        "requirements_have_values",
        {"resources.affinity": preferring({"key": "a", "operator": "Gt", "values": ["b"]})},
        f"spec.{PREFERRED}.values",
        {"resources.affinity": preferring({"key": "a", "operator": "Gt", "values": ["7"]})},
    ),
    Case(
        "requirements_have_values",
        {
            "resources.affinity": avoiding(
                {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}
            )
        },
        f"spec.{AVOIDED}.labelSelector.matchExpressions[0].values",
        {
            "resources.affinity": avoiding(
                {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}
            )
        },
    ),
    Case(
        "devices_are_counted",
        {f"{SFT}.resources": {"deviceClaimTemplate": "gpus"}},
        f"spec.{SFT}.resources.gpusPerNode",
        {f"{SFT}.resources": {"deviceClaimTemplate": "gpus", "gpusPerNode": 1}},
    ),
    Case(
        "rdma_serves_gpus",
        {
            "resources": {"rdma": {"resource": "rdma/hca"}, "gpusPerNode": 8},
            f"{DPO}.resources": {"gpusPerNode": 0},
        },
        f"spec.{DPO}.resources.gpusPerNode",
        {"resources": {"rdma": {"resource": "rdma/hca"}, "gpusPerNode": 8}},
    ),
    Case(
        "topology_name_is_kais",
        {
            "scheduling.gang": "volcano",
            "resources.topology": {"level": "rack", "name": "racks"},
        },
        "spec.scheduling.gang",
        {"scheduling.gang": "kai", "resources.topology": {"level": "rack", "name": "racks"}},
    ),
    Case(
        "kai_topology_has_a_name",
        {"scheduling.gang": "kai", f"{DPO}.resources": {"topology": {"level": "rack"}}},
        "spec.scheduling.gang",
        {"scheduling.gang": "auto", f"{DPO}.resources": {"topology": {"level": "rack"}}},
    ),
    Case(
        "tiers_are_volcanos",
        {"scheduling.gang": "native", "resources.topology": {"level": "2"}},
        "spec.scheduling.gang",
        {"scheduling.gang": "volcano", "resources.topology": {"level": "2"}},
    ),
    Case(
        "env_is_the_users",
        {"env": [{"name": "LD_PRELOAD", "value": "x.so"}]},
        "spec.env[0].name",
        {"env": [{"name": "OLD_PRELOAD", "value": "x.so"}]},
    ),
    Case(
        "env_is_the_users",
        {f"{SFT}.env": [{"name": "PATH", "value": "/"}]},
        f"spec.{SFT}.env[0].name",
        {f"{SFT}.env": [{"name": "DATA_PATH", "value": ""}]},
    ),
    Case(
        "env_has_one_value",
        {"env": [{"name": "A"}]},
        "spec.env[0]",
        {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
    ),
    Case(
        "secrets_hide_nothing",
        {"secrets": [{"name": "s", "mountPath": "/etc/ssl"}]},
        "spec.secrets[0].mountPath",
        {"secrets": [{"name": "s", "mountPath": "/etcetera"}]},
    ),
    Case(
        "secrets_have_places",
        {f"{SFT}.secrets": [{"name": "s", "mountPath": "/s"}, {"name": "t", "mountPath": "/s"}]},
        f"spec.{SFT}.secrets",
        {f"{SFT}.secrets": [{"name": "s", "mountPath": "/s"}, {"name": "t"}, {"name": "u"}]},
    ),
    Case(
        "own_trainer_has_an_image",
        {f"{SFT}.command": ["train"]},
        f"spec.{SFT}.command",
        {f"{SFT}.command": ["train"], "image": "mine"},
    ),
    Case(
        "every_rank_has_rows",
        {"resources": {"nodes": 100}, f"{SFT}.command": ["train"], f"{SFT}.image": "mine"}
        | {f"{REWARD}.globalBatchSize": 100, f"{PPO}.minibatchSize": 128},
        f"spec.{DPO}.globalBatchSize",
        {"resources": {"nodes": 100}, f"{SFT}.command": ["train"], f"{SFT}.image": "mine"}
        | {f"{REWARD}.globalBatchSize": 100, f"{PPO}.minibatchSize": 128}
        | {f"{DPO}.globalBatchSize": 100},
    ),
    Case(
        "placement_is_there",
        {f"{PPO}.placement": {"actor": 2}, f"{PPO}.resources": {"gpusPerNode": 2}},
        f"spec.{PPO}.placement",
        {
            f"{PPO}.placement": {"actor": 2},
            f"{PPO}.resources": {"gpusPerNode": 2},
            f"{PPO}.command": ["train"],
            "image": "mine",
        },
    ),
    Case(
        "placement_adds_up",
        {
            f"{PPO}.placement": {"actor": 2, "rollout": 3},
            f"{PPO}.resources": {"nodes": 2, "gpusPerNode": 2},
            f"{PPO}.command": ["train"],
            "image": "mine",
        },
        f"spec.{PPO}.placement",
        {
            f"{PPO}.placement": {"actor": 2, "rollout": 2},
            f"{PPO}.resources": {"nodes": 2, "gpusPerNode": 2},
            f"{PPO}.command": ["train"],
            "image": "mine",
        },
    ),
    Case(
        "rows_fit_stage",
        {f"{PPO}.data.format": "text"},
        f"spec.{PPO}.data.format",
        {f"{PPO}.data.format": "kto"},
    ),
    Case(
        "rows_fit_stage",
        {f"{DPO}.data.format": "ranked", f"{DPO}.loss": "kto"},
        f"spec.{DPO}.data.format",
        {f"{DPO}.data.format": "ranked"},
    ),
    Case(
        "addresses_have_shape",
        {"model.tokenizer": "hf://a/b/c"},
        "spec.model.tokenizer",
        {"model.tokenizer": "hf://a/b"},
    ),
    Case(
        "addresses_stay_inside",
        {"model.tokenizer": "s3://bucket/a/.."},
        "spec.model.tokenizer",
        {"model.tokenizer": "s3://bucket/a..b"},
    ),
    Case(
        "addresses_stay_inside",
        {f"{SFT}.data.evalSource": "gs://bucket/../b"},
        f"spec.{SFT}.data.evalSource",
        {f"{SFT}.data.evalSource": "gs://bucket/..b"},
    ),
    Case(
        "secrets_of_sources_are_used",
        {"model.secret": "hub"},
        "spec.model.secret",
        {"model.secret": "hub", "model.tokenizer": "hf://a/b"},
    ),
    Case(
        "reward_terms_have_names",
        {f"{PPO}.rewards": {"a": {"stage": "reward"}, "-b": {"stage": "reward"}}},
        f"spec.{PPO}.rewards",
        {f"{PPO}.rewards": {"a": {"stage": "reward"}, "b-": {"stage": "reward"}}},
    ),
    Case(
        "label_keys_are_names",
        {"resources.affinity": avoiding({"matchLabels": {"a": "b", "a b": "c"}})},
        f"spec.{AVOIDED}.labelSelector.matchLabels",
        {"resources.affinity": avoiding({"matchLabels": {"a": "b", "a-b": "c"}})},
    ),
    Case(
        "adapters_are_handed_on_merged",
        {f"{SFT}.lora": {"output": "adapter"}, DPO: REMOVE, PPO: REMOVE},
        f"spec.{SFT}.lora.output",
        {f"{SFT}.lora": {"output": "merged"}, f"{REWARD}.lora": {}},
    ),
    Case(
        "rows_fit_stage",
        {f"{DPO}.data.format": "text"},
        f"spec.{DPO}.data.format",
        {f"{DPO}.data.format": "hh"},
    ),
    Case(
        "settings_are_read",
        {f"{DPO}.simpoGamma": 1.0},
        f"spec.{DPO}.simpoGamma",
        {f"{DPO}.simpoGamma": 1.0, f"{DPO}.loss": "simpo", f"{DPO}.beta": 2.0},
    ),
    Case(
        "margin_is_in_reach",
        {f"{DPO}.loss": "simpo"},
        f"spec.{DPO}.beta",
        {f"{DPO}.loss": "simpo", f"{DPO}.beta": 2.0},
    ),
    Case(
        "margin_is_in_reach",
        {f"{DPO}.loss": "simpo", f"{DPO}.beta": 2.5, f"{DPO}.simpoGamma": 3},
        f"spec.{DPO}.beta",
        {f"{DPO}.loss": "simpo", f"{DPO}.beta": 2.5, f"{DPO}.simpoGamma": 1.4},
    ),
    *(
        Case(
            "settings_are_read",
            {f"{DPO}.{weight}": 2},
            f"spec.{DPO}.{weight}",
            {f"{DPO}.{weight}": 2, f"{DPO}.loss": "kto"},
        )
        for weight in ("desirableWeight", "undesirableWeight")
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.criticLearningRate": 1e-3, f"{PPO}.critic": "shared"},
        f"spec.{PPO}.criticLearningRate",
        {f"{PPO}.criticLearningRate": 1e-3, f"{PPO}.critic": "fresh"},
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.criticLearningRate": 1e-3, f"{PPO}.advantage": "reinforce++"},
        f"spec.{PPO}.criticLearningRate",
        {f"{PPO}.criticLearningRate": 1e-5, f"{PPO}.advantage": "reinforce++"},
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.valueCoef": 1},
        f"spec.{PPO}.valueCoef",
        {f"{PPO}.valueCoef": 1, f"{PPO}.critic": "shared"},
    ),
    *(
        Case(
            "settings_are_read",
            {f"{PPO}.advantage": "reinforce++", f"{PPO}.{setting}": value},
            f"spec.{PPO}.{setting}",
            {f"{PPO}.{setting}": value},
        )
        for setting, value in (("valueClip", 0.4), ("lam", 1), ("whitenAdvantages", False))
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.advantage": "rloo", f"{PPO}.rollout.samplesPerPrompt": 2, f"{PPO}.gamma": 0.9},
        f"spec.{PPO}.gamma",
        {f"{PPO}.advantage": "reinforce++", f"{PPO}.gamma": 0.9},
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.groupStd": False},
        f"spec.{PPO}.groupStd",
        {
            f"{PPO}.groupStd": False,
            f"{PPO}.advantage": "grpo",
            f"{PPO}.rollout.samplesPerPrompt": 2,
        },
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.dynamicSampling": {}, f"{PPO}.advantage": "reinforce++"},
        f"spec.{PPO}.dynamicSampling",
        {
            f"{PPO}.dynamicSampling": {},
            f"{PPO}.advantage": "rloo",
            f"{PPO}.rollout.samplesPerPrompt": 2,
        },
    ),
    Case(
        "clip_fits_the_ratio",
        {f"{PPO}.ratio": "sequence"},
        f"spec.{PPO}.clip",
        {f"{PPO}.ratio": "sequence", f"{PPO}.clip": 3e-4, f"{PPO}.clipHigh": 4e-4},
    ),
    Case(
        "clip_fits_the_ratio",
        {f"{PPO}.ratio": "sequence", f"{PPO}.clip": 0.11},
        f"spec.{PPO}.clip",
        {f"{PPO}.ratio": "sequence", f"{PPO}.clip": 0.1},
    ),
    Case(
        "settings_are_read",
        {f"{PPO}.lora": {"dropout": 0.1}},
        f"spec.{PPO}.lora.dropout",
        {f"{PPO}.lora": {"dropout": 0}, f"{DPO}.lora": {"dropout": 0.1}},
    ),
    Case(
        "gate_can_pass",
        {f"{SFT}.gate": {"metric": "eval/loss", "max": 2.0}, f"{SFT}.data.evalFraction": 0},
        f"spec.{SFT}.gate.metric",
        {f"{SFT}.gate": {"metric": "eval/loss", "max": 2.0}, f"{SFT}.data.evalFraction": 0}
        | {f"{SFT}.data.evalSource": "held-out.jsonl"},
    ),
    Case(
        "gate_holds_something",
        {f"{PPO}.gate": {"approval": True}},
        f"spec.{PPO}.gate",
        {f"{SFT}.gate": {"approval": True}},
    ),
    Case(
        "gate_holds_something",
        {f"{DPO}.gate": {"approval": True}},
        f"spec.{DPO}.gate",
        {f"{SFT}.gate": {"approval": True}, PPO: REMOVE, REWARD: REMOVE},
    ),
    Case(
        "gate_holds_something",
        {f"{REWARD}.gate": {"approval": True}, PPO: REMOVE},
        f"spec.{REWARD}.gate",
        {f"{REWARD}.gate": {"approval": True}, DPO: REMOVE},
    ),
    Case(
        "gate_holds_something",
        {f"{SFT}.gate": {"approval": True}, PPO: REMOVE, REWARD: REMOVE, DPO: REMOVE},
        f"spec.{SFT}.gate",
        {f"{SFT}.gate": {"approval": True}, PPO: REMOVE, DPO: REMOVE},
    ),
    Case(
        "gate_holds_something",
        {
            f"{SFT}.gate": {"approval": True},
            f"{REWARD}.startFrom": "base",
            PPO: REMOVE,
            DPO: REMOVE,
        },
        f"spec.{SFT}.gate",
        {f"{SFT}.gate": {"approval": True}, f"{REWARD}.startFrom": "base", PPO: REMOVE},
    ),
    Case(
        "gate_holds_something",
        HTTP | {f"{REWARD}.gate": {"approval": True}, f"{PPO}.critic": "fresh"},
        f"spec.{REWARD}.gate",
        HTTP | {f"{REWARD}.gate": {"approval": True}},
    ),
    Case(
        "adapters_are_handed_on_merged",
        {f"{SFT}.lora": {"output": "adapter"}, PPO: REMOVE, DPO: REMOVE},
        f"spec.{SFT}.lora.output",
        {f"{SFT}.lora": {"output": "adapter"}, f"{REWARD}.startFrom": "base"}
        | {PPO: REMOVE, DPO: REMOVE},
    ),
    Case(
        "held_out_rows_are_read",
        {f"{PPO}.data.evalFraction": 0.1},
        f"spec.{PPO}.data.evalFraction",
        {f"{PPO}.data.evalFraction": 0},
    ),
    Case(
        "held_out_rows_are_read",
        {f"{PPO}.data.evalSource": "held-out.jsonl"},
        f"spec.{PPO}.data.evalSource",
        {f"{PPO}.data.evalSource": "held-out.jsonl", f"{PPO}.command": ["train"], "image": "mine"},
    ),
    *(
        Case(
            "held_out_rows_are_read",
            {place: {"source": "rows.jsonl", field: value}},
            f"spec.{place}.{field}",
            {place: {"source": "rows.jsonl"}},
        )
        for place in ("evaluation.prompts", f"{PPO}.pretraining.data")
        for field, value in (("evalFraction", 0.2), ("evalSource", "held-out.jsonl"))
    ),
    *(case for alone in (SFT, REWARD, DPO) for case in cases_of_topology(alone)),
    *(case for stage in (SFT, REWARD, PPO, DPO) for case in cases_of_each_stage(stage)),
]
