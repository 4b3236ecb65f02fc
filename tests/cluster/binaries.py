"""The programs of a control plane: found in KUBEBUILDER_ASSETS, or built once from Go modules.

`python -m cluster.binaries` (with tests/ on PYTHONPATH) builds them and prints their folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cluster.toolchain import Go, NoBinaries, pinned_version, required_version, toolchain

TOOLS: Final = Path(__file__).parent / "tools"
KUBERNETES: Final = pinned_version(TOOLS, "k8s.io/kubernetes")
PACKAGES: Final = {
    "etcd": "./etcd",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
"""Each program and the package it is built from; go.mod pins their versions."""

LINK: Final = "-s -w " + " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {
        "gitVersion": f"v{KUBERNETES}",
        "gitMajor": KUBERNETES.split(".")[0],
        "gitMinor": KUBERNETES.split(".")[1],
    }.items()
)
BUILD: Final = ("build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={LINK}")

Report = Callable[[str], None]


def report_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def find_binaries(report: Report = report_on_stderr) -> Path:
    """The folder with all programs; builds them where no folder is named and none is cached.

    Raises NoBinaries where KUBEBUILDER_ASSETS lacks some or a build fails.
    """
    named = os.environ.get("KUBEBUILDER_ASSETS")
    return _given(Path(named)) if named else _built(_cache_root(), report)


def _given(folder: Path) -> Path:
    if missing := _missing(folder):
        raise NoBinaries(
            f"KUBEBUILDER_ASSETS is {folder}, which lacks {', '.join(missing)}. Put all of "
            f"{', '.join(PACKAGES)} there (Kubernetes {KUBERNETES}; envtest's archives have only "
            "some of them), or unset KUBEBUILDER_ASSETS to have them built"
        )
    return folder


def _built(root: Path, report: Report) -> Path:
    folder = root / _digest()
    if not _missing(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(root / "lock"):
        if missing := _missing(folder):
            report(f"Building Kubernetes {KUBERNETES} for the tests, once, into {folder}:")
            with toolchain(required_version(TOOLS), root, report) as go:
                for name in missing:
                    report(f"  {name} …")
                    report(f"  {name}: {_build(go, name, folder)}")
    return folder


def _build(go: Go, name: str, folder: Path) -> str:
    """Puts a program in its place when it is whole; says how long it took and how large it is."""
    begun = time.monotonic()
    draft = folder / f".{name}"
    go.run([*BUILD, "-o", str(draft), PACKAGES[name]], TOOLS, f"building {name}")
    draft.replace(folder / name)
    megabytes = (folder / name).stat().st_size / 1e6
    return f"{time.monotonic() - begun:.0f} s, {megabytes:.0f} MB"


def _missing(folder: Path) -> list[str]:
    return [name for name in PACKAGES if not os.access(folder / name, os.X_OK)]


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rlhf-operator" / "control-plane"


def _digest() -> str:
    """Changes with whatever the programs are made from."""
    digest = hashlib.sha256(repr((BUILD, platform.system(), platform.machine())).encode())
    for path in sorted(path for path in TOOLS.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(TOOLS)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits for other runs that build the same; the system frees the lock however this ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(find_binaries())
    except NoBinaries as error:
        sys.exit(f"error: {error}")
