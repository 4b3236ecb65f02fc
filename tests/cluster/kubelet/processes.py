"""Pods as processes of this machine, by the runner of local runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rlhf_operator.local import LocalRunError
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.container import Container, read, write
from rlhf_operator.local.kubelet import (
    command,
    environment,
    no_proxy,
    termination_message,
)
from rlhf_operator.local.mounts import Needs, Sources, mount, termination_file, volume_needs
from rlhf_operator.local.processes import TAG, environment_of, send, tagged

from cluster.kubelet.api import Object
from cluster.kubelet.runtime import Host, NotReady
from cluster.kubelet.sources import Fetcher, require
from cluster.kubelet.status import Exit
from cluster.kubelet.variables import environment_needs, with_values

POLL: Final = 0.03
"""Seconds between two looks at a process."""
SIGKILL_CODE: Final = 137


class Processes:
    """The runtime. The image is this machine: `python` is this interpreter.

    `directory` gets a folder a pod. `image_environment`: the variables that an image would bring.
    """

    def __init__(self, directory: Path, image_environment: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._image = {"OMP_NUM_THREADS": "1", **(image_environment or {})}
        self._gangs: dict[str, Addresses] = {}  # by the UID of their Service

    async def create(self, pod: Object, host: Host) -> ProcessContainer:
        """Mounts the volumes and starts the command. Raises NotReady."""
        fetcher = Fetcher(host.api, pod)
        spec = pod["spec"]
        if len(spec["containers"]) > 1 or spec.get("initContainers"):
            raise NotReady("CreateContainerError", "only pods of one container are run here")
        container = spec["containers"][0]
        for_volumes, for_variables = volume_needs(spec), environment_needs(container)
        sources = await fetcher.fetch(_both(for_volumes, for_variables))
        require(for_volumes, sources)
        addresses = self._addresses(await fetcher.service())
        try:
            return self._start(pod, sources, addresses)
        except LookupError as error:
            raise NotReady("CreateContainerConfigError", str(error.args[0])) from None
        except LocalRunError as error:
            raise NotReady("CreateContainerError", str(error)) from None

    def _start(self, pod: Object, sources: Sources, addresses: Addresses) -> ProcessContainer:
        meta, spec = pod["metadata"], pod["spec"]
        container = spec["containers"][0]
        directory = self._directory / meta["namespace"] / f"{meta['name']}-{uuid.uuid4().hex[:8]}"
        variables = environment(with_values(pod, sources), directory, addresses)
        words = command(container, variables, addresses)
        directory.mkdir(parents=True)
        mount(directory, spec, sources)
        tag = uuid.uuid4().hex
        grace = spec["terminationGracePeriodSeconds"]
        write(directory / "pod.json", {"command": words, "grace": grace, "tag": tag})
        made = Container(directory, tag)
        inherited = {**os.environ, **no_proxy(os.environ), **self._image}
        made.start({**inherited, **variables, "CUDA_VISIBLE_DEVICES": "", TAG: tag})
        return ProcessContainer(made, termination_file(container, directory))

    def _addresses(self, service: Object | None) -> Addresses:
        """The same for all pods behind one Service."""
        if service is None:
            return Addresses()
        return self._gangs.setdefault(service["metadata"]["uid"], Addresses.of(service))


class ProcessContainer:
    """One pod's processes."""

    def __init__(self, container: Container, message: Path | None) -> None:
        self.started_at = time.time()
        self.directory = container.directory
        self._container = container
        self._message = message
        self._grace: float | None = None
        self._reason = ""

    async def wait(self) -> Exit:
        """How it ended, once none of its processes is left."""
        while self._container.state != "ended":
            self._container.end_orphans()
            if self._grace is not None:
                self._container.ask_to_end(self._grace)
            await asyncio.sleep(POLL)
        return self._exit()

    def stop(self, grace: float) -> None:
        """Asked for at each look, as a supervisor that just starts does not hear yet."""
        self._grace = grace

    def kill(self, reason: str = "", rank: int | None = None) -> None:
        """SIGKILL by somebody else. Raises LookupError where there is no such process."""
        self._reason = reason
        victims = sorted(self._victims(rank))
        for pid in victims:  # the one that was started first goes first: its end counts
            send(pid, signal.SIGKILL)
        if not victims:
            who = "" if rank is None else f" of rank {rank}"
            raise LookupError(f"{self.directory.name} has no process{who}")

    def _victims(self, rank: int | None) -> list[int]:
        """Those of the rank, or all but the supervisor, which lives to tell."""
        supervisor = (read(self.directory / "process.json") or {}).get("pid")
        found = [pid for pid in tagged(self._container.tag) if pid != supervisor]
        setting = f"RANK={rank}".encode()
        return [pid for pid in found if rank is None or setting in environment_of(pid)]

    def close(self) -> None:
        """Leaves nothing behind."""
        self._container.kill()
        self._container.disrupt()
        while self._container.state != "ended":
            self._container.end_orphans()
            time.sleep(POLL)

    def log(self) -> str:
        """What it has written so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "log.txt").read_text(encoding="utf-8", errors="replace")
        return ""

    def _exit(self) -> Exit:
        told: dict[str, Any] = self._container.exit or {"code": SIGKILL_CODE}
        code = int(told["code"])
        log = self.directory / "log.txt"
        return Exit(
            exit_code=code,
            message=termination_message(self._message, log, failed=code != 0),
            reason=self._reason if code == SIGKILL_CODE else "",
            started_at=self._container.started_at or self.started_at,
            finished_at=float(told.get("finished", time.time())),
        )


def _both(one: Needs, other: Needs) -> Needs:
    return Needs(*(a | b for a, b in zip(one, other, strict=True)))
