"""A fork passes for the process that was asked for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_jobs import wait_until

import warm


def served(process: subprocess.Popen[str]) -> int:
    """The port on which `python -m http.server 0` says that it listens."""
    assert process.stdout
    return int(process.stdout.readline().split("port ")[1].split()[0])


def is_served(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def serving() -> subprocess.Popen[str]:
    command = [*warm.command("http.server"), "0", "--bind", "127.0.0.1"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)


def test_it_has_the_words_the_files_and_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a":1}')
    given = {"capture_output": True, "text": True, "cwd": tmp_path, "check": False}
    for program in ([sys.executable, "-m"], warm.command()):
        good = subprocess.run([*program, "json.tool", "--compact", "rows"], **given)
        assert (good.returncode, good.stdout) == (0, '{"a":1}\n')
        bad = subprocess.run([*program, "json.tool", "none"], **given)
        assert bad.returncode == 2
        assert "none" in bad.stderr


def test_it_has_the_variables_of_whoever_asked_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import os; print(os.environ.get('A'), os.getenv('HOME'))")
    words = warm.command("told")
    environ = {"A": "b", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "b None\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_gets_the_signals_and_dies_with_whoever_passes_for_it(number: signal.Signals) -> None:
    process = serving()
    port = served(process)
    assert is_served(port)
    process.send_signal(number)
    assert process.wait(120) == -number
    wait_until(lambda: not is_served(port))


def test_one_that_goes_before_it_has_asked_is_no_harm() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(warm.server(warm.COMMANDS)))
        client.sendall(b"{")
    done = subprocess.run(warm.command("json.tool"), input="{}", text=True, timeout=120, check=True)
    assert done.returncode == 0


def test_one_that_is_known_by_its_number_can_be_stopped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = warm.Forked("http.server", ["0"], os.environ, log.fileno())
    assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "T (stopped)" in Path(f"/proc/{process.pid}/status").read_text())
    process.kill()
    assert process.wait(120) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL
