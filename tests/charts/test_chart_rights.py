"""The rights that the chart gives: from one file, and no more of them than the code needs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from chart import REPOSITORY, Helm, Object
from operator_rights import GIVEN, OF_GANGS
from rlhf_api.scheduling import Scheduling
from rlhf_operator.references import CLAIM, FIELDS, QUEUES
from rlhf_operator.render import Platform
from rlhf_operator.render.gang import GANGS, gang_choice

Right = tuple[str, str, str]


def rights(rules: list[Object]) -> set[Right]:
    """Group, resource and verb of each."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Everything(frozenset[str]):
    """What a cluster serves that serves all versions of all."""

    def __contains__(self, kind: object) -> bool:
        return True


def plural_kinds(gang: Any) -> set[tuple[str, str]]:
    kinds = gang.kinds(Platform(served=Everything()))
    return {(kind.split("/")[0], f"{kind.rsplit('/', 1)[1].lower()}s") for kind in kinds}


@pytest.mark.parametrize("name", GANGS)
def test_the_kinds_of_a_gang_scheduler_may_be_made_and_those_of_kueue_be_read(name: str) -> None:
    given = rights(OF_GANGS[name])
    assert {right[:2] for right in given} == plural_kinds(GANGS[name])
    made = {right[:2] for right in given if right[2] == "create"}
    assert made == (set() if name == "kueue" else plural_kinds(GANGS[name]))


@pytest.mark.parametrize("names", [["none"], ["kueue", "native"], ["volcano"]])
def test_gang_schedulers_that_are_not_used_give_no_rights(names: list[str], helm: Helm) -> None:
    rendered = helm.render({"jobDefaults": {"gangSchedulers": names}})
    of_gangs = [rule for name in names for rule in OF_GANGS[name]]
    given = [*GIVEN["jobs"], *of_gangs, *GIVEN["progress"]]
    assert rendered.one("ClusterRole", "rlhf-operator")["rules"] == given


def test_gang_none_in_the_order_is_where_auto_ends() -> None:
    platform = Platform(served=Everything(), gang_order=("kueue", "none", "native"))
    choice = gang_choice(Scheduling(), platform)
    assert choice == ("none", "No gang scheduler can be used; kueue has no queue here.")


def test_the_webhook_may_look_at_all_that_a_job_can_name() -> None:
    kinds = {*FIELDS.values(), *(kind for kinds in QUEUES.values() for kind in kinds)} - {CLAIM}
    looked_at = {
        (kind.api_version.rpartition("/")[0], kind.plural, "get", kind.is_namespaced)
        for kind in kinds
    }
    given = {(*right, True) for right in rights(GIVEN["webhookInNamespaces"])}
    given |= {(*right, False) for right in rights(GIVEN["webhookInCluster"])}
    assert given == looked_at


def test_nothing_is_given_on_secrets_on_roles_or_by_wildcard() -> None:
    given = rights([rule for rules in GIVEN.values() for rule in rules])
    words = {word for right in given for word in right}
    assert not words & {"*", "secrets", "pods/exec", "rbac.authorization.k8s.io", "impersonate"}


def test_served_namespaces_get_a_role_each_and_the_cluster_no_more_than_token_reviews(
    helm: Helm,
) -> None:
    rendered = helm.render({"watchNamespaces": ["team-a", "team-b"]})
    assert {role["metadata"]["namespace"] for role in rendered.of("Role")} == {
        "team-a",
        "team-b",
        "rlhf-system",
    }
    for role in rendered.of("Role"):
        if role["metadata"]["namespace"] != "rlhf-system":
            assert rights(role["rules"]) == rights([*GIVEN["jobs"], *GIVEN["gangs"]])
    assert rendered.one("ClusterRole", "rlhf-operator")["rules"] == GIVEN["progress"]
    for binding in [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]:
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == ("rlhf-operator", "rlhf-system")


def test_an_operator_for_all_namespaces_has_one_cluster_role(helm: Helm) -> None:
    rendered = helm.render()
    given = [*GIVEN["jobs"], *GIVEN["gangs"], *GIVEN["progress"]]
    assert rights(rendered.one("ClusterRole", "rlhf-operator")["rules"]) == rights(given)
    assert [role["metadata"]["name"] for role in rendered.of("Role")] == ["rlhf-operator-lease"]


def test_an_operator_outside_of_the_cluster_has_the_same_rights() -> None:
    found = yaml.safe_load_all((REPOSITORY / "deploy/rbac.yaml").read_text(encoding="utf-8"))
    given = rights([rule for item in found for rule in item.get("rules", [])])
    names = ("jobs", "gangs", "lease", "progress")
    assert given == rights([rule for name in names for rule in GIVEN[name]])
