"""Pods run from their images, for real: a root file system that buildah mounts, read-only
for the pod, its volumes, its user, none of root's capabilities. The network is this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from cluster.kubelet import sources
from cluster.kubelet.runtime import Host
from cluster.kubelet.sources import Fetcher, require
from cluster.kubelet.status import Exit
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.kubelet import environment, expanded, termination_message
from rlhf_operator.local.mounts import mount, volume_needs

Object = dict[str, Any]
_numbers = itertools.count(1)
POLL = 0.1


class Image(NamedTuple):
    """What its configuration says."""

    name: str
    user: str
    environment: dict[str, str]
    entrypoint: list[str]
    directory: str
    labels: dict[str, str]
    ports: list[str]

    @classmethod
    def of(cls, name: str) -> Image:
        """An image in buildah's storage. Raises RuntimeError where there is none."""
        config = json.loads(buildah("inspect", "--type=image", name))["OCIv1"]["config"]
        return cls(
            name,
            config.get("User", ""),
            dict(item.partition("=")[::2] for item in config.get("Env", [])),
            config.get("Entrypoint", []),
            config.get("WorkingDir", "/"),
            config.get("Labels", {}),
            list(config.get("ExposedPorts", {})),
        )


def buildah(*words: str) -> str:
    """What it prints."""
    done = subprocess.run(["buildah", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"buildah {' '.join(words)}: {done.stderr}")
    return done.stdout.strip()


class Root:
    """A root file system made from an image, and thrown away at the end."""

    def __init__(self, image: str) -> None:
        self._container = buildah("from", "--pull-never", image)
        self.path = Path(buildah("mount", self._container))

    def place(self, path: str) -> Path:
        """Where a path of the container is, with links as the container would follow them."""
        here = self.path
        for part in Path(path).parts[1:]:
            here = here / part
            while here.is_symlink():
                target = here.readlink()
                parent = self.path if target.is_absolute() else here.parent
                here = parent / str(target).lstrip("/")
        return here

    def remove(self) -> None:
        buildah("umount", self._container)
        buildah("rm", self._container)


class FromImages:
    """A kubelet's runtime. `directory` gets a folder a pod."""

    def __init__(self, directory: Path, api_server: str) -> None:
        self._directory = directory
        host, _, port = api_server.removeprefix("https://").partition(":")
        self._cluster = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    async def create(self, pod: Object, host: Host) -> PodContainer:
        """Fills the volumes and starts the command. Raises NotReady."""
        spec = _anywhere(pod["spec"])
        needs = volume_needs(spec)
        found = await Fetcher(host.api, pod).fetch(needs)
        require(needs, found)
        services = (await host.api.get("/api/v1/services") or {})["items"]
        folder = self._directory / f"{pod['metadata']['name']}-{next(_numbers)}"
        volumes = folder / "volumes"
        volumes.mkdir(parents=True)
        mount(volumes, spec, found)
        _downward(volumes, pod)
        (folder / "hosts").write_text(_hosts(pod, services))
        return PodContainer(pod, found, folder, self._cluster)


def _anywhere(spec: Object) -> Object:
    """The pod's specification, all of whose mounts count: those of a local run are below its
    working directory. The namespace of a service account's token is written by hand.
    """
    spec = copy.deepcopy(spec)
    (container,) = spec["containers"]
    container["workingDir"] = "/"
    for volume in spec.get("volumes", []):
        parts = volume.get("projected", {}).get("sources", [])
        parts[:] = [part for part in parts if "downwardAPI" not in part]
    return spec


def _downward(volumes: Path, pod: Object) -> None:
    token = volumes / "var/run/secrets/kubernetes.io/serviceaccount"
    if token.exists():
        (token / "namespace").write_text(pod["metadata"]["namespace"])


def _hosts(pod: Object, services: list[Object]) -> str:
    """What a cluster's DNS would answer: everybody is on the loopback interface."""
    meta, spec = pod["metadata"], pod["spec"]
    own = spec.get("hostname", meta["name"])
    names = [own]
    if subdomain := spec.get("subdomain"):
        names += [f"{own}.{subdomain}", f"{own}.{subdomain}.{meta['namespace']}.svc"]
    for service in services:
        names.append(f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc")
    return "".join(f"127.0.0.1 {name}\n" for name in ["localhost", *names])


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
"""In a mount and process namespace of the pod's own: as a container runtime would."""

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class PodContainer:
    """The one container of a pod."""

    def __init__(
        self, pod: Object, found: sources.Sources, folder: Path, cluster: dict[str, str]
    ) -> None:
        (container,) = pod["spec"]["containers"]
        self.started_at = time.time()
        self._grace: float | None = None
        self._asked_at = 0.0
        self._reason = ""
        self._log = folder / "log.txt"
        self._message = folder / "termination"
        self._message.touch()
        image = Image.of(f"localhost/{container['image']}")
        self._root = Root(image.name)
        user, groups = _user(pod["spec"], container, image)
        binds = self._binds(container, folder, user)
        seen = copy.deepcopy(pod)
        seen["spec"]["containers"][0].pop("workingDir", None)  # no paths of this machine
        seen["status"]["podIP"] = "127.0.0.1"
        variables = image.environment | cluster | environment(seen, found, folder, Addresses())
        words = [*(container.get("command") or image.entrypoint), *container.get("args", [])]
        inside = [
            *("setpriv", f"--reuid={user}", f"--regid={groups[0]}", f"--groups={','.join(groups)}"),
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
            *("env", "-i", f"--chdir={container.get('workingDir', image.directory)}"),
            *(f"{name}={value}" for name, value in variables.items()),
            *(expanded(word, variables) for word in words),
        ]
        namespaces = ("--mount", "--pid", "--fork", "--kill-child", "--propagation=private")
        shell = ["sh", "-c", SETUP, "setup", str(self._root.path), *binds, "--", *inside]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", *namespaces, *shell], stdout=log, stderr=log
            )

    def _binds(self, container: Object, folder: Path, user: str) -> list[str]:
        """Pairs of what is mounted and where; the places are made, as a container runtime does."""
        pairs = [(str(folder / "hosts"), "/etc/hosts")]
        pairs += [(f"/dev/{name}", f"/dev/{name}") for name in DEVICES]
        for item in container.get("volumeMounts", []):
            volume = (folder / "volumes" / item["mountPath"].lstrip("/")).resolve()
            subprocess.run(["chown", "-R", f"{user}:{user}", str(volume)], check=True)
            pairs.append((str(volume), item["mountPath"]))
        message = container.get("terminationMessagePath", "/dev/termination-log")
        os.chmod(self._message, 0o666)
        pairs.append((str(self._message), message))
        placed = [(source, self._root.place(target)) for source, target in pairs]
        for source, place in placed:
            if Path(source).is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        return [str(word) for pair in placed for word in pair]

    async def wait(self) -> Exit:
        while self._process.poll() is None:
            if self._grace is not None and time.time() - self._asked_at > self._grace:
                self._process.kill()
            await asyncio.sleep(POLL)
        code = self._process.returncode
        self._root.remove()
        code = 128 - code if code < 0 else code
        return Exit(
            exit_code=code,
            message=termination_message(self._message, self._log, failed=code != 0),
            reason=self._reason,
            started_at=self.started_at,
            finished_at=time.time(),
        )

    def stop(self, grace: float) -> None:
        if self._grace is None:
            self._asked_at = time.time()
            self._signal(signal.SIGTERM)
        self._grace = min(grace, self._grace if self._grace is not None else grace)

    def kill(self, reason: str = "", rank: int | None = None) -> None:
        self._reason = reason
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """To the first process of the namespace, which is the container's command."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in children.read_text().split():
                os.kill(int(pid), number)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._root.remove()


def _user(spec: Object, container: Object, image: Image) -> tuple[str, list[str]]:
    """The user's number and the groups' numbers; refused where a kubelet would refuse it."""
    pod = spec["securityContext"]
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"]
    user = str(own.get("runAsUser", pod.get("runAsUser", image.user.partition(":")[0])))
    assert user.isdigit(), f"runAsNonRoot needs a number, and {image.name} says {user!r}"
    assert user != "0"
    group = str(pod.get("runAsGroup", image.user.partition(":")[2] or "0"))
    return user, [group, *([str(pod["fsGroup"])] if "fsGroup" in pod else [])]
