"""What an operator is told by flags and by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from rlhf_operator import main as operator_main
from rlhf_operator.settings import Settings, parse


def test_flags_win_over_the_environment() -> None:
    environ = {"RLHF_NAMESPACES": "a, b", "RLHF_HEALTH_PORT": "9000", "RLHF_GANG_ORDER": "kai"}
    told = parse([], environ)
    assert (told.namespaces, told.health_port, told.gang_order) == (("a", "b"), 9000, ("kai",))
    told = parse(["--namespace", "c", "--health-port", "9001"], environ)
    assert (told.namespaces, told.health_port) == (("c",), 9001)
    assert parse(["--all-namespaces"], environ).namespaces == ()


def test_the_scope_has_to_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], {})
    assert "--all-namespaces" in capsys.readouterr().err


def test_a_cluster_s_defaults() -> None:
    told = parse(
        [
            *("--all-namespaces", "--default-queue", "research"),
            *("--default-node-selector", "pool=gpu,zone=a"),
            *("--default-tolerations", '[{"key": "nvidia.com/gpu", "operator": "Exists"}]'),
        ],
        {"RLHF_DEFAULT_STORAGE_CLASS": "fast"},
    ).defaults
    assert (told.queue, told.storage_class) == ("research", "fast")
    assert told.node_selector == {"pool": "gpu", "zone": "a"}
    assert [(item.key, item.operator) for item in told.tolerations] == [
        ("nvidia.com/gpu", "Exists")
    ]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--default-node-selector", "gpu", "label=value"),
        ("--default-tolerations", "[{]", "--default-tolerations"),
        ("--default-tolerations", '[{"kay": "x"}]', "0.kay"),
        ("--webhook-port", "9443", "--tls-directory"),
        ("--progress-url", "https://operator:8082", "--tls-directory"),
        ("--log-level", "LOUD", "DEBUG"),
        ("--gang-order", "volcano,vulcan", "'vulcan'; known names are none, volcano, kai"),
    ],
)
def test_what_is_wrong_is_said(
    flag: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--all-namespaces", flag, value], {})
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RLHF_HEALTH_PORT", "tcp://10.0.0.1:8080", "--health-port: invalid int value"),
        ("RLHF_WEBHOOK_PORT", "https", "--webhook-port: invalid int value"),
        ("RLHF_WORKERS", "many", "--workers: invalid int value"),
        ("RLHF_LOG_LEVEL", "debug", "--log-level: 'debug' is none of DEBUG, INFO"),
    ],
)
def test_what_is_wrong_in_the_environment_is_said_as_well(
    variable: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--all-namespaces"], {variable: value})
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_webhook_has_its_certificate() -> None:
    told = parse(
        ["--all-namespaces", "--webhook-port", "9443", "--tls-directory", "/tls"],
        {"RLHF_TLS_NAME": "rlhf.svc"},
    )
    assert (told.webhook_port, told.tls_directory) == (9443, Path("/tls"))
    assert told.tls_name == "rlhf.svc"
    assert Settings().webhook_port is None


def test_a_port_that_is_taken_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused:
        def __init__(self, settings: Settings) -> None:
            pass

        async def run(self) -> None:
            taken = OSError(98, "bind on ('0.0.0.0', 8080): address already in use")
            raise ExceptionGroup("tasks", [ExceptionGroup("probes", [taken])])

    monkeypatch.setattr(operator_main, "Replica", Refused)
    assert operator_main.main(["--all-namespaces"]) == 1
    assert caplog.messages == [
        "The operator cannot run: [Errno 98] bind on ('0.0.0.0', 8080): address already in use"
    ]
