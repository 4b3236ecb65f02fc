"""Variables of a pod that refer to ConfigMaps and Secrets, on the tests' kubelet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.kubelet import environment
from rlhf_operator.local.mounts import Sources

from cluster.kubelet.variables import with_values

SOURCES = Sources(config_maps={"c": {"k": b"1"}}, secrets={"s": {"k": b"$(X)$"}, "there": {}})


def referring(kind: str, **reference: Any) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {kind: reference}}


def variables(*env: dict[str, Any], **container: Any) -> dict[str, str]:
    spec = {"containers": [{"name": "main", "env": list(env), **container}]}
    pod = with_values({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}, SOURCES)
    return environment(pod, Path("/pods/p"), Addresses())


def test_a_variable_from_a_config_map_and_from_a_secret_as_it_stands_there() -> None:
    assert variables(referring("configMapKeyRef", name="c", key="k"))["X"] == "1"
    assert variables(referring("secretKeyRef", name="s", key="k"))["X"] == "$(X)$"


def test_all_keys_of_a_config_map_are_variables_that_others_may_refer_to() -> None:
    whole = {"envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}]}
    later = {"name": "LATER", "value": "$(P_k)0"}
    assert variables(later, **whole) == {"P_k": "1", "LATER": "10"}


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (referring("secretKeyRef", name="t", key="k"), 'secret "t" not found'),
        (referring("configMapKeyRef", name="d", key="k"), 'configmap "d" not found'),
        (referring("secretKeyRef", name="there", key="k"), "couldn't find key k in Secret n/there"),
    ],
)
def test_what_a_variable_refers_to_and_is_not_there_is_named(
    variable: dict[str, Any], message: str
) -> None:
    with pytest.raises(LookupError) as error:
        variables(variable)
    assert error.value.args == (message,)


def test_an_optional_variable_is_left_out() -> None:
    assert variables(referring("secretKeyRef", name="t", key="k", optional=True)) == {}
    assert variables(referring("secretKeyRef", name="there", key="k", optional=True)) == {}
