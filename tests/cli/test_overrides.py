"""--set changes single fields, and refuses paths that no manifest has."""

from __future__ import annotations

from typing import Any

import pytest
from rlhf_cli.failures import Failure
from rlhf_cli.overrides import apply_overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("spec.seed=7", {"spec": {"seed": 7}}),
        ("spec.stages.ppo.kl.coef=5e-2", {"spec": {"stages": {"ppo": {"kl": {"coef": 0.05}}}}}),
        ("spec.stages.ppo=", {"spec": {"stages": {"ppo": None}}}),
        ("spec.model.source=a=b", {"spec": {"model": {"source": "a=b"}}}),
        ("spec.evaluation={a: b}", {"spec": {"evaluation": {"a": "b"}}}),
        (
            "spec.resources.tolerations[0].key=gpu",
            {"spec": {"resources": {"tolerations": [{"key": "gpu"}]}}},
        ),
        (
            "spec.stages.ppo.rewards.judge.weight=0.5",
            {"spec": {"stages": {"ppo": {"rewards": {"judge": {"weight": 0.5}}}}}},
        ),
        (
            "spec.stages.ppo.rewards.1.weight=0.5",
            {"spec": {"stages": {"ppo": {"rewards": {"1": {"weight": 0.5}}}}}},
        ),
        (
            "spec.resources.nodeSelector[kubernetes.io/arch]=arm64",
            {"spec": {"resources": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}}},
        ),
        ("spec.env[0].name=A", {"spec": {"env": [{"name": "A"}]}}),
    ],
)
def test_a_field_is_set_with_all_that_is_above_it(override: str, expected: dict[str, Any]) -> None:
    if "tolerations" in override:
        start: dict[str, Any] = {"spec": {"resources": {"tolerations": [{}]}}}
    else:
        start = {}
    assert apply_overrides(start, [override]) == expected


def test_the_last_of_several_overrides_wins_and_the_manifest_is_left_alone() -> None:
    manifest = {"spec": {"seed": 1, "image": "x"}}
    changed = apply_overrides(manifest, ["spec.seed=2", "spec.seed=3"])
    assert changed == {"spec": {"seed": 3, "image": "x"}}
    assert manifest["spec"]["seed"] == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("spec.stages.ppo.kl.ceof=1", "spec.stages.ppo.kl has no field ceof; did you mean coef?"),
        ("spec.stages.ppo.kl_coef=1", "spec.stages.ppo has no field kl_coef"),
        ("stages.sft.epochs=1", "did you mean spec.stages.sft.epochs?"),
        ("spec.seed.x=1", "spec.seed has no fields"),
        ("spec.seed", "is not PATH=VALUE"),
        ("=3", "is not PATH=VALUE"),
        (".=3", "is not PATH=VALUE"),
        ("[]=3", "is not PATH=VALUE"),
        ("spec..seed=3", "is not PATH=VALUE"),
        ("spec.seed.=3", "is not PATH=VALUE"),
        ("spec[seed=3", "is not PATH=VALUE"),
        ("spec.resources.tolerations[²].key=a", "cannot hold it"),
        (
            "spec.resources.nodeSelector.kubernetes.io/arch=arm64",
            "did you mean spec.resources.nodeSelector[kubernetes.io/arch]?",
        ),
        ("spec.seed=[1", "the value is not YAML"),
        ("spec.resources.tolerations[3].key=a", "cannot hold it"),
    ],
)
def test_a_path_or_value_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(Failure) as caught:
        apply_overrides({"spec": {"resources": {"tolerations": []}}}, [override])
    assert message in str(caught.value)
    assert caught.value.exit_code == 64


@pytest.mark.parametrize("obj", [None, 3, [1], "text"])
def test_a_manifest_that_is_no_mapping_is_refused_and_not_changed(obj: object) -> None:
    with pytest.raises(Failure):
        apply_overrides(obj, ["spec.seed=1"])
