"""What a pod finds on one machine: its variables, its addresses, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rlhf_operator.local import LocalRunError
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.job_controller import pod_of
from rlhf_operator.local.kubelet import command, environment, termination_message
from rlhf_operator.local.mounts import Sources, mount, volume_needs

HOME = "/rlhf"


def a_pod(*env: dict[str, Any], **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "workingDir": HOME, "env": list(env), **spec.pop("container", {})}
    return {
        "metadata": {
            "name": "p",
            "namespace": "n",
            "labels": {"a.b/c": "label"},
            "annotations": {"it's": "annotation"},
        },
        "spec": {"nodeName": "node-1", "containers": [container], **spec},
    }


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return environment(pod, Path("/pods/p"), Addresses())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("run-0.run", "127.0.0.1"),
        ("run-11.run.team", "127.0.0.1"),
        ("run-0.run.team.svc", "127.0.0.1"),
        ("run-0.run.team.svc.cluster.local", "127.0.0.1"),
        ("run-0.run.other", "run-0.run.other"),
        ("run-0.another", "run-0.another"),
        ("run", "run"),
        ("config/run.yaml", "config/run.yaml"),
        ("29500", "40000"),
        ("29501", "29501"),
    ],
)
def test_names_and_ports_of_the_service_are_of_this_machine(word: str, expected: str) -> None:
    assert Addresses("run", "team", {"29500": "40000"}).local(word) == expected


def test_without_a_service_no_name_is_known() -> None:
    assert Addresses.of(None).local("run-0.run") == "run-0.run"


def test_two_services_have_ports_of_their_own() -> None:
    service = {
        "metadata": {"name": "s", "namespace": "n"},
        "spec": {"ports": [{"port": 29500}]},
    }
    ports = [int(Addresses.of(service).ports["29500"]) for _ in range(200)]
    assert len({*ports}) == 200
    # Its pod listens on it seconds later: no connection may be given it meanwhile.
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.labels['a.b/c']", "label"),
        ("metadata.annotations['it's']", "annotation"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "node-1"),
        ("status.podIP", ""),
    ],
)
def test_the_downward_api(path: str, value: str) -> None:
    variable = {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}
    assert variables(a_pod(variable)) == {"X": value}


def test_paths_below_the_working_directory_are_where_the_pod_is() -> None:
    env = [
        {"name": "TMPDIR", "value": f"{HOME}/tmp"},
        {"name": "CACHE", "value": "$(TMPDIR)/cache"},
        {"name": "OTHER", "value": "/etc/hosts"},
    ]
    assert variables(a_pod(*env)) == {
        "TMPDIR": "/pods/p/tmp",
        "CACHE": "/pods/p/tmp/cache",
        "OTHER": "/etc/hosts",
    }


def test_the_command_has_its_variables_and_addresses() -> None:
    container = {"command": ["train", "$(RANK)"], "args": ["$$(RANK)", "run-0.run"]}
    words = command(container, {"RANK": "3"}, Addresses("run", "n"))
    assert words == ["train", "3", "$(RANK)", "127.0.0.1"]


def test_the_job_controller_tells_each_pod_its_index() -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "main"}]}}
    job = {"metadata": {"name": "j", "namespace": "n"}, "spec": {"template": template}}
    pod = pod_of(job, 2)
    assert (pod["metadata"]["name"], pod["spec"]["hostname"]) == ("j-2", "j-2")
    assert pod["metadata"]["labels"]["a"] == "b"
    assert variables(pod) == {"JOB_COMPLETION_INDEX": "2"}


def test_a_projected_volume_has_the_files_of_all_its_sources(tmp_path: Path) -> None:
    parts = [
        {"serviceAccountToken": {"audience": "a", "path": "token"}},
        {"configMap": {"name": "c"}},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "deep/k"}]}},
    ]
    mounts = [{"name": "all", "mountPath": f"{HOME}/all"}]
    pod = a_pod(
        volumes=[{"name": "all", "projected": {"sources": parts}}],
        container={"volumeMounts": mounts},
    )
    needs = volume_needs(pod["spec"])
    assert (needs.config_maps, needs.secrets, needs.audiences) == ({"c"}, {"s"}, {"a"})
    sources = Sources(
        config_maps={"c": {"x": b"1"}}, secrets={"s": {"k": b"2", "l": b"3"}}, tokens={"a": "t"}
    )
    mount(tmp_path, pod["spec"], sources)
    found = {
        str(file.relative_to(tmp_path)): file.read_text()
        for file in tmp_path.rglob("*")
        if file.is_file()
    }
    assert found == {"all/token": "t", "all/x": "1", "all/deep/k": "2"}
    assert (tmp_path / "all/token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("volume", [{"image": {"reference": "r"}}, {"secret": {"secretName": "s"}}])
def test_a_volume_that_one_machine_lacks_is_named(volume: dict[str, Any], tmp_path: Path) -> None:
    mounts = [{"name": "v", "mountPath": f"{HOME}/v"}]
    pod = a_pod(volumes=[{"name": "v", **volume}], container={"volumeMounts": mounts})
    with pytest.raises(LocalRunError, match="on one machine"):
        mount(tmp_path, pod["spec"], Sources())


def test_a_success_without_a_message_has_none(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("words")
    assert termination_message(tmp_path / "none", log, failed=False) == ""
    assert termination_message(None, log, failed=True) == "words"
