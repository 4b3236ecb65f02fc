"""A node with a real kubelet: containerd and runc, a network of pods, Services, DNS.

It needs namespaces of its own for network, mounts and processes, as `make kubelet-test` makes them:
so nothing that it does is seen outside of them, and nothing of it is left when they go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cluster.control_plane import ControlPlane
from cluster.programs import Group, Program
from node_files import ADDRESS, PLUGINS, NodeFiles
from node_images import NodeImages

READY_TIMEOUT: Final = 120.0
CGROUPS: Final = Path("/sys/fs/cgroup")
OF_CONTAINERS: Final = "k8s.io"
"""The cgroup that containerd makes in each hierarchy where the kubelet has none of its own."""

FIXED: Final = ("/run/containerd", "/var/lib/cni", "/var/log/containers")
"""Folders that these programs write to, and no setting moves."""

PROGRAMS: Final = ("containerd", "ctr", "runc", "iptables", "ip")

NETWORK: Final = f"""
ip link set lo up
ip link add node type veth peer name nobody
ip address add {ADDRESS}/32 dev node
ip link set node up
ip link set nobody up
ip route add default dev node
echo 1 > /proc/sys/net/ipv4/ip_forward
"""
"""What is sent to a Service has a route before kube-proxy's rules turn it to a pod."""

Object = dict[str, Any]


def make_network() -> None:
    """Gives this process's network the node's address.

    Raises RuntimeError in a network that is used, and where the machine lacks a program.
    """
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking or not PLUGINS.is_dir():
        raise RuntimeError(
            f"not found: {', '.join(lacking) or PLUGINS}. A node needs Debian's packages "
            "containerd, runc, containernetworking-plugins, iptables and iproute2"
        )
    if Path("/proc/net/route").read_text().splitlines()[1:] or os.getuid():
        raise RuntimeError("a node needs a network of its own, and root: run `make kubelet-test`")
    subprocess.run(["sh", "-ec", NETWORK], check=True)


class RealKubelet:
    """Runs while it is entered as a context; its files and logs are in `directory`.

    `program` finds kubelet, kube-proxy, pause and coredns. The control plane listens on ADDRESS.
    """

    name: Final = "machine"

    def __init__(
        self, plane: ControlPlane, program: Callable[[str], Path], directory: Path
    ) -> None:
        self._plane, self._program, self._directory = plane, program, directory
        self._files = NodeFiles(directory, plane.kubeconfig)
        self.images = NodeImages(self._files.socket)

    def __enter__(self) -> Self:
        self._files.write()
        for folder in FIXED:
            Path(folder).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "node", folder], check=True)
        self._group = Group()
        self._programs: list[Program] = []
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pod in self._plane.client.list("v1/pods"):
            meta = pod["metadata"]
            self._plane.client.delete("v1/pods", meta["name"], meta["namespace"], grace=1)
        self._stop()

    def check(self) -> None:
        """Raises ProgramError, with the end of its log, where a program has ended by itself."""
        for program in self._programs:
            program.check()

    def log(self, pod: Object) -> str:
        """What the pod's container printed, from the node's files: it is there without kubelet."""
        meta = pod["metadata"]
        folder = f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
        files = sorted((self._directory / "logs" / folder).glob("*/*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def processes(self, pod: Object) -> list[Path]:
        """The folders in /proc of the processes in a pod's container."""
        status = pod["status"]["containerStatuses"][0]
        container = status["containerID"].removeprefix("containerd://")
        group = CGROUPS / "pids" / OF_CONTAINERS / container
        numbers = (group / "cgroup.procs").read_text().split()
        return [Path("/proc", number) for number in numbers]

    def _start(self) -> None:
        files = self._files
        self._run("containerd", ["containerd", "--config", str(files.containerd)], self._serves)
        self.images.take_pause(self._program("pause"), self._directory)
        self._run("coredns", [str(self._program("coredns")), "-conf", str(files.dns)], _resolves)
        proxy = [str(self._program("kube-proxy")), f"--config={files.proxy}"]
        self._run("kube-proxy", [*proxy, f"--hostname-override={self.name}"])
        kubelet = [str(self._program("kubelet")), f"--config={files.kubelet}"]
        kubelet += [f"--kubeconfig={self._plane.kubeconfig}", f"--node-ip={ADDRESS}"]
        kubelet += [f"--hostname-override={self.name}", f"--root-dir={self._directory}/kubelet"]
        self._run("kubelet", kubelet, self._is_ready)

    def _run(self, name: str, command: list[str], ready: Callable[[], bool] = lambda: True) -> None:
        program = Program(self._group, self._directory / f"{name}.log", command)
        self._programs.append(program)
        program.start()
        program.wait_until(ready, READY_TIMEOUT)

    def _serves(self) -> bool:
        with contextlib.suppress(RuntimeError):
            self.images.names()
            return True
        return False

    def _is_ready(self) -> bool:
        node = self._plane.client.find("v1/nodes", self.name) or {}
        found = (node.get("status") or {}).get("conditions") or []
        is_tainted = bool(node.get("spec", {}).get("taints"))
        return not is_tainted and any(
            one["type"] == "Ready" and one["status"] == "True" for one in found
        )

    def _stop(self) -> None:
        """In this order: nothing starts anew what has just ended."""
        containers: list[str] = []
        with contextlib.suppress(RuntimeError):  # it may be containerd that did not start
            containers = self.images.containers()
        for program in reversed(self._programs):
            program.stop()
        for container in containers:
            for group in CGROUPS.glob(f"*/{OF_CONTAINERS}/{container}"):
                _end(group)
        for group in CGROUPS.glob(f"*/{OF_CONTAINERS}"):
            with contextlib.suppress(OSError):  # where others have theirs in it
                group.rmdir()
        self._group.close()
        for place in [*_mounted_below(self._directory), *FIXED]:
            subprocess.run(["umount", "--lazy", place], check=False)


def _mounted_below(directory: Path) -> list[str]:
    """Where pods and containers had something mounted, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4] for line in lines]
    return [place for place in reversed(places) if place.startswith(f"{directory}/")]


def _resolves() -> bool:
    """Whether something listens where pods ask for names."""
    try:
        socket.create_connection((ADDRESS, 53), timeout=1).close()
    except OSError:
        return False
    return True


def _end(group: Path) -> None:
    """Kills what is left in a cgroup, and removes it."""
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        for number in filter(int, (group / "cgroup.procs").read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        with contextlib.suppress(OSError):
            group.rmdir()
