"""What one field alone forbids, and what of it no schema of a custom resource can say."""

from __future__ import annotations

from typing import Any

from rule_cases import REMOVE

SFT, PPO = "stages.sft", "stages.ppo"

REFUSED_FIELDS: list[tuple[str, Any]] = [
    (f"{SFT}.epochs", "3"),
    (f"{SFT}.epochs", 0),
    (f"{SFT}.epochs", 0.0),
    (f"{SFT}.epochs", 1000.5),
    (f"{SFT}.microBatchSize", 0),
    (f"{SFT}.microBatchSize", 2.0),
    (f"{SFT}.microBatchSize", 2.5),
    (f"{SFT}.microBatchSize", True),
    (f"{SFT}.microBatchSize", 10**30),
    (f"{SFT}.maxSteps", 10**30),
    (f"{SFT}.packing", "yes"),
    (f"{SFT}.packing", 1),
    (f"{SFT}.trainOn", "answer"),
    (f"{SFT}.zero.stage", 4),
    (f"{SFT}.lora.dropout", 1),
    (f"{SFT}.data", REMOVE),
    (f"{SFT}.data", None),
    (f"{SFT}.data.source", None),
    (f"{SFT}.data.source", ""),
    (f"{SFT}.data.source", "a\0b"),
    (f"{SFT}.data.source", "中" * 1025),
    (f"{SFT}.learning_rate", 0.1),
    (f"{SFT}.lerningRate", 0.1),
    (f"{SFT}.gate", [1]),
    (f"{SFT}.lora.targetModules", "q_proj"),
    (f"{SFT}.data.columns.prompt", ""),
    (f"{SFT}.data.revision", "é"),
    (f"{SFT}.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
    (f"{SFT}.secrets", [{"name": "a"}, {"name": "a"}]),
    ("stages.dpo.labelSmoothing", 0.5),
    ("stages.dpo.labelSmoothing", 1),
    (f"{PPO}.rewards.a", {"function": {"entrypoint": "mä:f", "source": "code"}}),
    (f"{PPO}.rewards.a", {"http": {"url": "http://a b"}}),
    (f"{PPO}.rollout.importanceCap", 0),
    ("resources.cpu", -1),
    ("resources.cpu", 1.5),
    ("resources.cpu", 10**30),
    ("resources.memory", "5 x"),
    ("resources.tolerations", [None]),
    ("resources.tolerations", [{"effect": "No"}]),
    ("checkpoints.subPath", "../../etc"),
    ("image", "two words"),
    ("resources.device", "nvidia.com"),
    ("resources.device", "cpu"),
    ("resources.device", "example.com/" + "a" * 64),
    ("resources.rdma", {"resource": "memory"}),
    ("resources.runtimeClass", "a..b"),
    ("resources.topology", {"level": "a" * 64}),
    (f"{SFT}.gate", {"metric": "", "min": 0}),
    (f"{SFT}.data", {"source": "hf://org/data", "revision": "two words"}),
    ("seed", 2**31),
    ("stages", REMOVE),
    ("nothing", {}),
]
"""Refused by the validator and by the API server."""

BEYOND_A_SCHEMA: list[tuple[str, Any]] = [
    ("seed", None),
    (f"{SFT}.epochs", None),
    ("resources", None),
    ("resources.nodeSelector", {"a": None}),
]
"""Refused by the validator alone: the API server takes null for "left out"."""
