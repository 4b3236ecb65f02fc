"""The programs that tests run: found in KUBEBUILDER_ASSETS, or built once from Go modules.

`python -m cluster.binaries` (with tests/ on PYTHONPATH) builds all and prints the folder of the
control plane's; with names, it prints where these programs are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.modules import KUBERNETES, MODULES, NODE, Module
from cluster.toolchain import Go, NoBinaries, required_version, toolchain

Report = Callable[[str], None]


def report_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def find_binaries(report: Report = report_on_stderr) -> Path:
    """The folder with a control plane's programs; builds them unless named or cached.

    Raises NoBinaries where KUBEBUILDER_ASSETS lacks some or a build fails.
    """
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return _given(Path(named)) if named else _built([KUBERNETES], report)[0]


def find_program(name: str, report: Report = report_on_stderr) -> Path:
    """A program of any module: from KUBEBUILDER_ASSETS where that has it, else built once.

    Raises NoBinaries where the build fails.
    """
    named = Path(os.environ.get("KUBEBUILDER_ASSETS", os.devnull)) / name
    if os.access(named, os.X_OK):
        return named
    module = next(module for module in (*MODULES, *NODE) if name in module.packages)
    return _built([module], report)[0] / name


def find_all(report: Report = report_on_stderr) -> Path:
    """As find_binaries, once the programs of every other module can be found as well."""
    if not (named := os.environ.get("KUBEBUILDER_ASSETS")):
        return _built(MODULES, report)[0]
    folder = _given(Path(named))
    _built([module for module in MODULES if _missing(module, folder)], report)
    return folder


def _given(folder: Path) -> Path:
    if missing := _missing(KUBERNETES, folder):
        raise NoBinaries(
            f"KUBEBUILDER_ASSETS is {folder}, which lacks {', '.join(missing)}. Put all of "
            f"{', '.join(KUBERNETES.packages)} there (Kubernetes {KUBERNETES.version}; "
            "envtest's archives have only some of them), or unset KUBEBUILDER_ASSETS to have them "
            "built"
        )
    return folder


def _built(modules: Sequence[Module], report: Report) -> list[Path]:
    """The folder of each module's programs, all made by one toolchain."""
    root = _cache_root()
    folders = [root / _digest(module) for module in modules]
    if not any(map(_missing, modules, folders)):
        return folders
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(root / "lock"):
        if any(map(_missing, modules, folders)):
            required = max(required_version(module.folder) for module in modules)
            with toolchain(required, root, report) as go:
                for module, folder in zip(modules, folders, strict=True):
                    _build_missing(go, module, folder, report)
    return folders


def _build_missing(go: Go, module: Module, folder: Path, report: Report) -> None:
    if missing := _missing(module, folder):
        report(f"Building {module.title} {module.version} for the tests, once, into {folder}:")
        for name in missing:
            report(f"  {name} …")
            report(f"  {name}: {_build(go, module, name, folder)}")


def _build(go: Go, module: Module, name: str, folder: Path) -> str:
    """Puts a program in its place when it is whole; says how long it took and how large it is."""
    begun = time.monotonic()
    draft = folder / f".{name}"
    arguments = [*module.build, "-o", str(draft), module.packages[name]]
    go.run(arguments, module.folder, f"building {name}")
    draft.replace(folder / name)
    megabytes = (folder / name).stat().st_size / 1e6
    return f"{time.monotonic() - begun:.0f} s, {megabytes:.0f} MB"


def _missing(module: Module, folder: Path) -> list[str]:
    return [name for name in module.packages if not os.access(folder / name, os.X_OK)]


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rlhf-operator" / "control-plane"


def _digest(module: Module) -> str:
    """Changes with whatever the module's programs are made from."""
    made_on = (platform.system(), platform.machine())
    digest = hashlib.sha256(repr((module.build, *made_on)).encode())
    for path in sorted(path for path in module.folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(module.folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits for other runs that build the same; the system frees the lock however this ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(*map(find_program, sys.argv[1:]) if sys.argv[1:] else [find_all()], sep="\n")
    except NoBinaries as error:
        sys.exit(f"error: {error}")
