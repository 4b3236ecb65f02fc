"""Each value of the chart changes what it says it does, and nothing else; others are refused."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from chart import CHART, Helm, Object, Rendered, values_of
from differences import difference, unexpected
from rlhf_operator.settings import parse
from value_cases import CASES, NAMES, WITH_WEBHOOK, Case

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
OF_CASES = [pytest.param(case, id=case.value) for case in CASES]
EVERYTHING: Object = {
    "webhook": {"enabled": True},
    "tls": {"certManager": {"enabled": True}},
    "prometheus": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
    "grafana": {"dashboard": {"enabled": True}},
}
"""All objects that the chart can make."""
WRONG = {"string": 7, "boolean": "yes", "integer": "two", "array": "one", "object": "one"}
"""For each type of the schema something that is not of it."""


def merged(one: Any, other: Any) -> Any:
    """Values of two files, as Helm merges them."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    both = {name: merged(one[name], other[name]) for name in one.keys() & other.keys()}
    return {**one, **other, **both}


def settings(case: Case) -> Object:
    made: Object = merged(dict(case.given), values_of(case.value, case.setting))
    return made


def leaves(schema: Object, path: tuple[str, ...] = ()) -> dict[str, Object]:
    """Each value that can be set, and its schema."""
    found: dict[str, Object] = {}
    for name, item in schema["properties"].items():
        if "properties" in item:
            found |= leaves(item, (*path, name))
        elif name != "global":
            found[".".join((*path, name))] = item
    return found


@pytest.fixture(scope="module")
def render(helm: Helm) -> Callable[..., Rendered]:
    @functools.cache
    def of(text: str) -> Rendered:
        return helm.render(json.loads(text))

    return lambda values: of(json.dumps(values))


def test_every_value_has_a_case() -> None:
    assert sorted([*(case.value for case in CASES), *NAMES]) == sorted(leaves(SCHEMA))


@pytest.mark.parametrize("case", OF_CASES)
def test_a_value_changes_what_it_says_and_nothing_else(
    case: Case, render: Callable[..., Rendered]
) -> None:
    found = difference(render(dict(case.given)).objects, render(settings(case)).objects)
    assert unexpected(found, case.expected) == []


@pytest.mark.parametrize("case", OF_CASES)
def test_lint_is_content_with_each_value(case: Case, helm: Helm) -> None:
    values = merged({"crds": {"enabled": False}}, settings(case))  # large, and linted above
    helm.run("lint", "--strict", CHART, values=values)


def test_what_is_of_another_type_is_refused_by_name(helm: Helm) -> None:
    values: Object = {}
    for name, schema in leaves(SCHEMA).items():
        values = merged(values, values_of(name, WRONG[schema["type"]]))
    with pytest.raises(RuntimeError) as refusal:
        helm.run("lint", "--strict", CHART, values=values)
    for name in leaves(SCHEMA):
        assert f"- at '/{name.replace('.', '/')}'" in str(refusal.value)


def groups(schema: Object, path: str = "") -> list[str]:
    """Each name that has values below it."""
    found = []
    for name, item in schema["properties"].items():
        if "properties" in item:
            found += [f"{path}{name}", *groups(item, f"{path}{name}.")]
    return found


NEEDED = [name for name, item in leaves(SCHEMA).items() if item["type"] not in ("array", "object")]


@pytest.mark.parametrize("name", [*groups(SCHEMA), "logLevel", "progress.url", "image.repository"])
def test_what_is_taken_away_is_named(name: str, helm: Helm) -> None:
    where, _, last = name.rpartition(".")
    with pytest.raises(RuntimeError) as refusal:
        helm.render(values_of(name, None))
    assert f"- at '{where and f'/{where}'}': missing property '{last}'" in str(refusal.value)


def test_no_single_value_may_be_taken_away(helm: Helm) -> None:
    values: Object = {}
    for name in NEEDED:
        values = merged(values, values_of(name, None))
    with pytest.raises(RuntimeError) as refusal:
        helm.run("template", "x", CHART, values=values)
    for name in NEEDED:
        assert f"'{name.rpartition('.')[2]}'" in str(refusal.value)


def test_lists_and_maps_may_be_taken_away(helm: Helm) -> None:
    values: Object = {"grafana": {"dashboard": {"enabled": True}}}
    for name in leaves(SCHEMA).keys() - {*NEEDED, "networkPolicy.apiServerPorts"}:
        values = merged(values, values_of(name, None))
    assert helm.render(values).one("ConfigMap")


def test_labels_of_all_objects_are_on_all_objects(helm: Helm) -> None:
    made = helm.render(merged(EVERYTHING, {"commonLabels": {"team": "ml"}}), crds=True)
    assert {item["metadata"]["labels"].get("team") for item in made.objects} == {"ml"}
    assert made.one("Deployment")["spec"]["template"]["metadata"]["labels"]["team"] == "ml"


def test_as_a_part_of_another_chart_it_takes_that_ones_registry_and_secrets(helm: Helm) -> None:
    given = {"imageRegistry": "a.example", "imagePullSecrets": ["one", {"name": "two"}], "more": 1}
    made = helm.render({"global": given})
    assert made.container["image"].startswith("a.example/rlhf-operator:")
    assert made.pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert made.one("Pod")["spec"]["imagePullSecrets"] == made.pod["imagePullSecrets"]
    own = {"image": {"registry": "b.example"}, "imagePullSecrets": [{"name": "three"}]}
    made = helm.render({"global": given, **own})
    assert made.container["image"].startswith("b.example/rlhf-operator:")
    assert made.pod["imagePullSecrets"] == [{"name": "three"}]


@pytest.mark.parametrize("names", [[""], ["team-a", "team-a"], ["Team"], ["a" * 64], ["a", "b,c"]])
def test_namespaces_that_there_cannot_be_are_refused(names: list[str], helm: Helm) -> None:
    with pytest.raises(RuntimeError, match="- at '/watchNamespaces"):
        helm.render({"watchNamespaces": names})


def test_a_namespace_of_digits_is_text_wherever_it_stands(helm: Helm) -> None:
    values = merged(EVERYTHING, {"crds": {"enabled": False}, "watchNamespaces": ["10", "11"]})
    text = helm.run("template", "7", CHART, "--namespace", "1e3", values=values)
    objects = [item for item in yaml.safe_load_all(text) if item]
    found = [item["metadata"]["namespace"] for item in objects if "namespace" in item["metadata"]]
    assert {*found} == {"1e3", "10", "11"}
    assert re.findall(r"(?m)^.*(?:namespace|instance): [^\s\"{].*$", text) == []


@pytest.mark.parametrize("ports", [[], None])
def test_a_network_policy_that_lets_everything_out_is_refused(ports: Any, helm: Helm) -> None:
    with pytest.raises(RuntimeError, match=r"networkPolicy\.apiServerPorts: name the API server's"):
        helm.render({"networkPolicy": {"apiServerPorts": ports}})
    helm.render({"networkPolicy": {"apiServerPorts": ports, "enabled": False}})


def test_a_name_that_is_no_value_is_refused_wherever_it_stands(helm: Helm) -> None:
    groups = {name.rpartition(".")[0] for name in leaves(SCHEMA)}
    values: Object = {}
    for group in groups:
        values = merged(values, values_of(f"{group}.colour".removeprefix("."), "red"))
    with pytest.raises(RuntimeError) as refusal:
        helm.run("lint", "--strict", CHART, values=values)
    for group in groups:
        where = "".join(f"/{name}" for name in group.split(".") if name)
        assert f"- at '{where}': additional properties 'colour' not allowed" in str(refusal.value)


def test_a_full_name_takes_the_place_of_the_release_in_every_name(
    render: Callable[..., Rendered],
) -> None:
    usual, renamed = render({}), render({"fullnameOverride": "aligner"})
    names = [item["metadata"]["name"] for item in usual.objects]
    assert [item["metadata"]["name"] for item in renamed.objects] == [
        name.replace("rlhf-operator", "aligner") for name in names
    ]
    assert "--progress-url=http://aligner.rlhf-system.svc:8082" in renamed.args
    assert renamed.pod["serviceAccountName"] == "aligner"


def test_a_name_takes_the_place_of_the_charts_in_names_and_labels(
    render: Callable[..., Rendered],
) -> None:
    renamed = render({"nameOverride": "aligner"})
    for item in renamed.objects:
        assert item["metadata"]["name"].startswith("rlhf-operator-aligner")
    selected = {"app.kubernetes.io/name": "aligner", "app.kubernetes.io/instance": "rlhf-operator"}
    assert renamed.one("Service")["spec"]["selector"] == selected
    template = renamed.one("Deployment")["spec"]["template"]
    assert template["metadata"]["labels"].items() >= selected.items()


def test_an_object_of_the_table_is_what_a_field_of_yaml_makes() -> None:
    before = yaml.safe_load_all("{kind: A, metadata: {name: a}, spec: {x: [1, 2], y: [{z: 1}]}}")
    after = yaml.safe_load_all("{kind: A, metadata: {name: a}, spec: {x: [2, 3], y: [{z: 2}]}}")
    found = difference(list(before), list(after))
    assert found == {"A a spec.x[1]": None, "A a spec.x[3]": True, "A a spec.y.0.z": 2}
    assert unexpected(found, {"A a spec.x[*]": None, "A a spec.q": 1}) == [
        "A a spec.x[3] is True",
        "A a spec.y.0.z is 2",
        r"A\ a\ spec\.q is as it was",
    ]


@pytest.mark.parametrize("name", ["", "n" * 63])
def test_the_pod_of_helm_test_may_read_metrics_whoever_else_may(
    name: str, render: Callable[..., Rendered]
) -> None:
    others = {"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}
    rendered = render({"nameOverride": name, "networkPolicy": {"metricsFrom": [others]}})
    labels = rendered.one("Pod")["metadata"]["labels"]
    first, *rest = rendered.one("NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert labels.items() >= first["podSelector"]["matchLabels"].items()
    assert rest == [others]
    assert not rendered.one("Service")["spec"]["selector"].items() <= labels.items()
    assert all(len(value) <= 63 for value in labels.values())


def test_the_service_leads_to_the_ports_on_which_the_operator_listens(
    render: Callable[..., Rendered],
) -> None:
    rendered = render(WITH_WEBHOOK)
    listens = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    settings = parse(rendered.args, {})
    assert listens == {
        "metrics": settings.health_port,
        "progress": settings.progress_port,
        "webhook": settings.webhook_port,
    }
    served = {
        p["name"]: (p["port"], p["targetPort"]) for p in rendered.one("Service")["spec"]["ports"]
    }
    assert served["progress"] == (urlsplit(settings.progress_url or "").port, "progress")
    (webhook,) = rendered.one("ValidatingWebhookConfiguration")["webhooks"]
    assert served["webhook"] == (webhook["clientConfig"]["service"]["port"], "webhook")
    assert served["metrics"] == (8080, "metrics")
