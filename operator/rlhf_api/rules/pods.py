"""Rules that Kubernetes has for parts of a pod, told before pods are refused."""

from __future__ import annotations

import re
from typing import Any, Final

from rlhf_api.affinity import LabelRequirement, LabelSelector, NodeRequirement, Toleration
from rlhf_api.base import LABEL_KEY_PATTERN
from rlhf_api.job import JobSpec
from rlhf_api.pods import (
    RESERVED_ENV,
    RESERVED_ENV_PREFIXES,
    EnvVar,
    SecretMount,
    is_reserved,
)
from rlhf_api.resources import ResourceOverrides
from rlhf_api.rules.quantities import bytes_have_a_unit
from rlhf_api.rules.rule import Rule, Rules
from rlhf_api.stages.common import StageCommon

RESERVED_PATHS: Final = "^/(rlhf|dev|proc|sys|etc)(/|$)"


def _label_keys(field: str, name: str) -> Rule:
    return Rule(
        "label_keys_are_names",
        field,
        lambda value: all(re.search(LABEL_KEY_PATTERN, key) for key in getattr(value, name) or {}),
        f"!has(self.{field}) || self.{field}.all(key, key.matches(r'{LABEL_KEY_PATTERN}'))",
        "has a key that is not a label's",
        "a name such as example.com/gpu-type",
    )


TOLERATION_RULES: Final = (
    Rule(
        "tolerations_make_sense",
        "value",
        lambda item: item.operator != "Exists" or not item.value,
        "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        "is set, and operator is Exists",
        "leave value out, or use Equal",
    ),
    Rule(
        "tolerations_make_sense",
        "key",
        lambda item: item.operator == "Exists" or item.key is not None,
        "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
        "is missing",
        "a taint's key; only with operator Exists may it be left out",
    ),
    Rule(
        "tolerations_make_sense",
        "tolerationSeconds",
        lambda item: item.toleration_seconds is None or item.effect == "NoExecute",
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "is set without effect NoExecute",
        "effect: NoExecute",
    ),
)

REQUIREMENT_RULES: Final = (
    Rule(
        "requirements_have_values",
        "values",
        lambda item: item.operator not in ("In", "NotIn") or bool(item.values),
        "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
        "is empty, and operator is {operator}",
        "at least one value",
    ),
    Rule(
        "requirements_have_values",
        "values",
        lambda item: item.operator not in ("Exists", "DoesNotExist") or not item.values,
        "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || "
        "size(self.values) == 0",
        "is set, and operator is {operator}",
        "leave values out",
    ),
)

ONE_WHOLE_NUMBER: Final = Rule(
    "requirements_have_values",
    "values",
    lambda item: (
        item.operator not in ("Gt", "Lt")
        or (
            item.values is not None
            and len(item.values) == 1
            and bool(re.search("^[0-9]+$", item.values[0]))
        )
    ),
    "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && size(self.values) == 1 && "
    "self.values[0].matches('^[0-9]+$'))",
    "does not hold one whole number, and operator is {operator}",
    "one whole number, in quotes",
)

ENV_RULES: Final = (
    Rule(
        "env_is_the_users",
        "name",
        lambda item: not is_reserved(item.name),
        f"!(self.name in {sorted(RESERVED_ENV)}) && "
        f"!self.name.matches('^({'|'.join(RESERVED_ENV_PREFIXES)})')",
        "{name} is set by Kubernetes, the launcher or the operator, or loads code",
        "another name",
    ),
    Rule(
        "env_has_one_value",
        "",
        lambda item: (item.value is None) != (item.value_from is None),
        "has(self.value) != has(self.valueFrom)",
        "{name} does not have exactly one of value and valueFrom",
        "value or valueFrom.secretKeyRef",
    ),
)

MOUNT_RULES: Final = (
    Rule(
        "secrets_hide_nothing",
        "mountPath",
        lambda mount: not mount.mount_path or not re.search(RESERVED_PATHS, mount.mount_path),
        f"!has(self.mountPath) || !self.mountPath.matches('{RESERVED_PATHS}')",
        "hides what the pod needs",
        "a path of its own such as /secrets/wandb",
    ),
)


def _paths_differ(owner: Any) -> bool:
    paths = [mount.mount_path for mount in owner.secrets if mount.mount_path]
    return len(paths) == len(set(paths))


SECRETS_RULES: Final = (
    Rule(
        "secrets_have_places",
        "secrets",
        _paths_differ,
        "self.secrets.all(a, !has(a.mountPath) || self.secrets.exists_one(b, "
        "has(b.mountPath) && a.mountPath == b.mountPath))",
        "two of them have the same mountPath",
        "a path for each",
    ),
)

POD_RULES: Final[Rules] = {
    Toleration: TOLERATION_RULES,
    NodeRequirement: (*REQUIREMENT_RULES, ONE_WHOLE_NUMBER),
    LabelRequirement: REQUIREMENT_RULES,
    LabelSelector: (_label_keys("matchLabels", "match_labels"),),
    ResourceOverrides: (
        _label_keys("nodeSelector", "node_selector"),
        bytes_have_a_unit("memory", "memory"),
        bytes_have_a_unit("shmSize", "shm_size"),
    ),
    EnvVar: ENV_RULES,
    SecretMount: MOUNT_RULES,
    JobSpec: SECRETS_RULES,
    StageCommon: SECRETS_RULES,
}
