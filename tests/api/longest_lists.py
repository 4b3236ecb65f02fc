"""Changes that make every list on which a rule looks as long as it may be."""

from __future__ import annotations

from typing import Any

from rule_cases import REQUIRED, SOFT

REQUIREMENT = {"key": "a", "operator": "In", "values": ["b"] * 64}
NODE_TERM = {"matchExpressions": [REQUIREMENT] * 16}
POD_TERM = {
    "topologyKey": "zone",
    "labelSelector": {
        "matchLabels": {f"example.com/{number}": "x" for number in range(32)},
        "matchExpressions": [REQUIREMENT] * 16,
    },
}
RESOURCES: dict[str, Any] = {
    "nodeSelector": {f"example.com/{number}": "x" for number in range(64)},
    "tolerations": [{"operator": "Exists"}] * 64,
    "affinity": {
        "nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [NODE_TERM] * 16},
            SOFT: [{"weight": 1, "preference": NODE_TERM}] * 16,
        },
        "podAntiAffinity": {
            REQUIRED: [POD_TERM] * 16,
            SOFT: [{"weight": 1, "podAffinityTerm": POD_TERM}] * 16,
        },
    },
}
ENV = [{"name": f"VARIABLE_{number}", "value": "x"} for number in range(64)]
SECRETS = [{"name": f"s{n}", "mountPath": "/" + "s" * 480 + str(n)} for n in range(16)]
MODEL = {"source": "hf://" + "a" * 1000, "tokenizer": "s3://bucket/" + "a" * 1000}
REWARDS = {"r" * 60 + str(number): {"model": MODEL} for number in range(16)}

LONGEST: dict[str, Any] = {
    "env": ENV,
    "secrets": SECRETS,
    "resources": RESOURCES,
    "stages.ppo.resources": RESOURCES,
    "stages.ppo.env": ENV,
    "stages.ppo.secrets": SECRETS,
    "stages.ppo.rewards": REWARDS,
}
