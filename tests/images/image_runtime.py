"""Pods run from their images, for real: a root file system that is read-only, the pod's volumes and
user, none of root's capabilities. The network is this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from buildah_images import Image, Root
from cluster.kubelet.runtime import Host
from cluster.kubelet.sources import Fetcher, require
from cluster.kubelet.status import Exit
from cluster.kubelet.variables import with_values
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.kubelet import environment, expanded, termination_message
from rlhf_operator.local.mounts import Sources, mount, volume_needs

Object = dict[str, Any]
_numbers = itertools.count(1)
POLL = 0.1
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
OWN_NAMESPACE = "var/run/secrets/kubernetes.io/serviceaccount/namespace"
NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--propagation=private")
SETUP = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
mount -t proc proc "$root/proc"
mount --bind -o ro /sys "$root/sys"
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""
"""In these namespaces, what a container runtime does before a container's command."""


class User(NamedTuple):
    """Numbers."""

    user: str
    group: str
    more_groups: str  # the volumes'


class FromImages:
    """A kubelet's runtime. `directory` gets a folder a pod."""

    def __init__(self, directory: Path, api_server: str) -> None:
        self._directory = directory
        host, _, port = api_server.removeprefix("https://").partition(":")
        self._cluster = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    async def create(self, pod: Object, host: Host) -> PodContainer:
        """Fills the volumes and starts the command. Raises NotReady."""
        spec = _with_all_mounts(pod["spec"])
        needs = volume_needs(spec)
        found = await Fetcher(host.api, pod).fetch(needs)
        require(needs, found)
        services = (await host.api.get("/api/v1/services") or {})["items"]
        folder = self._directory / f"{pod['metadata']['name']}-{next(_numbers)}"
        volumes = folder / "volumes"
        volumes.mkdir(parents=True)
        mount(volumes, spec, found)
        if (volumes / OWN_NAMESPACE).parent.exists():
            (volumes / OWN_NAMESPACE).write_text(pod["metadata"]["namespace"])
        (folder / "hosts").write_text(_hosts(pod, services))
        image = Image.of(spec["containers"][0]["image"])
        variables = image.environment | self._cluster | _variables(pod, found, folder)
        return PodContainer(pod, image, variables, folder)


class PodContainer:
    """The one container of a pod. `folder` has its volumes and its file of hosts."""

    def __init__(self, pod: Object, image: Image, variables: dict[str, str], folder: Path) -> None:
        (container,) = pod["spec"]["containers"]
        self.started_at = time.time()
        self._stop_by: float | None = None
        self._reason = ""
        self._log = folder / "log.txt"
        self._message = folder / "termination"
        self._message.touch()
        self._message.chmod(0o666)
        self._root = Root(image)
        user = _user(pod["spec"], container, image)
        places = self._places(container, folder, user)
        command = _command(container, image, variables, user)
        words = [str(self._root.path), *places, "--", *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", *NAMESPACES, "sh", "-c", SETUP, "setup", *words], stdout=log, stderr=log
            )

    def _places(self, container: Object, folder: Path, user: User) -> list[str]:
        """What is mounted, each followed by where."""
        pairs = [(folder / "hosts", "/etc/hosts")]
        pairs += [(Path("/dev", name), f"/dev/{name}") for name in DEVICES]
        for item in container.get("volumeMounts", []):
            volume = (folder / "volumes" / item["mountPath"].lstrip("/")).resolve()
            subprocess.run(["chown", "-R", f"{user.user}:{user.group}", volume], check=True)
            pairs.append((volume, item["mountPath"]))
        pairs.append((self._message, container["terminationMessagePath"]))
        words: list[str] = []
        for what, where in pairs:
            place = self._root.make_place(where, is_folder=what.is_dir())
            words += [str(what), str(place)]
        return words

    async def wait(self) -> Exit:
        """How it ended, once it has."""
        while self._process.poll() is None:
            if self._stop_by is not None and time.time() > self._stop_by:
                self._process.kill()
            await asyncio.sleep(POLL)
        self._root.remove()
        code = self._process.returncode
        code = 128 - code if code < 0 else code
        return Exit(
            exit_code=code,
            message=termination_message(self._message, self._log, failed=code != 0),
            reason=self._reason,
            started_at=self.started_at,
            finished_at=time.time(),
        )

    def stop(self, grace: float) -> None:
        """SIGTERM; SIGKILL after so many seconds. A second call can only shorten them."""
        if self._stop_by is None:
            self._signal(signal.SIGTERM)
        by = time.time() + grace
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)

    def kill(self, reason: str = "", rank: int | None = None) -> None:
        """SIGKILL from outside."""
        self._reason = reason
        self._signal(signal.SIGKILL)

    @property
    def command_pid(self) -> int | None:
        """The container's command, the first process of its namespace; None before and after."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            return int(children.read_text().split()[0])
        return None

    def _signal(self, number: signal.Signals) -> None:
        if pid := self.command_pid:
            os.kill(pid, number)

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Ends it without a trace."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._root.remove()


def _with_all_mounts(spec: Object) -> Object:
    """A pod's specification, none of whose mounts counts as the host's, as those outside of the
    working directory do in a local run; without fields of the pod as files.
    """
    spec = copy.deepcopy(spec)
    (container,) = spec["containers"]
    container["workingDir"] = "/"
    for volume in spec.get("volumes", []):
        parts = volume.get("projected", {}).get("sources", [])
        parts[:] = [part for part in parts if "downwardAPI" not in part]
    return spec


def _variables(pod: Object, found: Sources, folder: Path) -> dict[str, str]:
    """The container's own, with its own paths and not this machine's."""
    pod = copy.deepcopy(pod)
    pod["spec"]["containers"][0].pop("workingDir", None)
    pod["status"]["podIP"] = "127.0.0.1"
    return environment(with_values(pod, found), folder, Addresses())


def _hosts(pod: Object, services: list[Object]) -> str:
    """What a cluster's DNS would answer: everybody is on the loopback interface."""
    meta, spec = pod["metadata"], pod["spec"]
    own = spec.get("hostname", meta["name"])
    names = ["localhost", own]
    if subdomain := spec.get("subdomain"):
        names += [f"{own}.{subdomain}", f"{own}.{subdomain}.{meta['namespace']}.svc"]
    for service in services:
        names.append(f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc")
    return "".join(f"127.0.0.1 {name}\n" for name in names)


def _command(container: Object, image: Image, variables: dict[str, str], user: User) -> list[str]:
    words = [*(container.get("command") or image.entrypoint), *container.get("args", [])]
    groups = ",".join(number for number in user[1:] if number)
    return [
        *("setpriv", f"--reuid={user.user}", f"--regid={user.group}", f"--groups={groups}"),
        *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
        *("env", "-i", f"--chdir={container.get('workingDir', image.directory)}"),
        *(f"{name}={value}" for name, value in variables.items()),
        *(expanded(word, variables) for word in words),
    ]


def _user(spec: Object, container: Object, image: Image) -> User:
    """The pod's, else the image's; refused where a kubelet would refuse it."""
    pod, own = spec["securityContext"], container["securityContext"]
    assert own["readOnlyRootFilesystem"]
    name, _, group = image.user.partition(":")
    user = str(own.get("runAsUser", pod.get("runAsUser", name)))
    assert user.isdigit(), f"runAsNonRoot needs a number, and {image.name} says {user!r}"
    assert user != "0"
    return User(user, str(pod.get("runAsGroup", group)), str(pod.get("fsGroup", "")))
