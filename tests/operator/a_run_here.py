"""Runs of rlhfctl on this machine, each command in a process of its own as at a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import warm
import yaml

Object = dict[str, Any]


def heeds_ctrl_c() -> None:
    """Whatever started the tests: a shell's job in the background is born deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class RunHere:
    """A folder in which somebody works, with a manifest; its run is in `run`."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.directory = folder / "run"
        self._environ = dict(environ)

    def start(
        self, *words: str, stdin: int | None = None, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """A command that goes on in another terminal."""
        return self._start([sys.executable, "-m", "rlhf_cli", *words], stdin, stdout)

    def _start(
        self, command: list[str], stdin: int | None = None, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environ,
            text=True,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=heeds_ctrl_c,
        )

    def finish(self, process: subprocess.Popen[str], code: int = 0, seconds: int = 300) -> str:
        """What a command has said on both streams; the exit code has to be this one."""
        said = "".join(process.communicate(timeout=seconds))
        assert "Traceback" not in said, said
        assert process.returncode == code, said
        return said

    def rlhfctl(self, *words: str, code: int = 0) -> str:
        """The same for a command that ends by itself."""
        return self.finish(self._start(warm.command("rlhf_cli", *words)), code)

    def here(self, verb: str, *words: str, code: int = 0) -> str:
        """A verb on the run."""
        return self.rlhfctl(verb, *words, "--dir", "run", code=code)

    @property
    def status(self) -> Object:
        """As it is written now."""
        file = self.directory / "status.yaml"
        if not file.exists():
            return {}
        found: Object = yaml.safe_load(file.read_text()).get("status") or {}
        return found

    def stage(self, name: str) -> Object:
        """Of the status."""
        found: Object = self.status.get("stages", {}).get(name, {})
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        """Its status and reason."""
        (found,) = [item for item in self.status["conditions"] if item["type"] == kind]
        return found["status"], found["reason"]

    def events(self) -> list[str]:
        """Reasons, oldest first."""
        lines = (self.directory / "events.jsonl").read_text().splitlines()
        return [json.loads(line)["reason"] for line in lines]
