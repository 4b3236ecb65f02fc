"""The commands of a page, run as a reader would: one after the other, in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 90
"""Seconds; what a page says of hours takes seconds here."""
WATCHED = 5.0
"""Seconds that a command which never ends is looked at."""


class Page:
    """The fenced blocks of a Markdown file, by the heading that they stand under."""

    def __init__(self, path: str) -> None:
        self.text = (REPOSITORY / path).read_text(encoding="utf-8")

    def section(self, title: str) -> str:
        found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", self.text, re.M | re.S)
        assert found, f"there is no section {title}"
        return found[1]

    def commands(self, title: str) -> list[str]:
        blocks = re.findall(r"^```console\n(.*?)^```", self.section(title), re.M | re.S)
        return [line for block in blocks for line in block.splitlines()]

    def manifest(self, title: str) -> str:
        (found,) = re.findall(r"^```yaml\n(.*?)^```", self.section(title), re.M | re.S)
        return str(found)

    @property
    def titles(self) -> list[str]:
        return re.findall(r"^## (.*)$", self.text, re.M)


class Shell:
    """A checkout to work in, a kubeconfig of one's own, and terminals for what does not end."""

    def __init__(self, directory: Path, kubeconfig: Path, binaries: Path) -> None:
        self.directory = directory
        for name in ("crds", "deploy", "examples"):
            (directory / name).symlink_to(REPOSITORY / name)
        (directory / ".venv").symlink_to(sys.prefix)
        own = directory / "kubeconfig"
        own.write_bytes(kubeconfig.read_bytes())
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "KUBECONFIG": str(own), "PATH": path}
        self._terminals: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """What it says. It fails where the command does."""
        if " -m rlhf_operator " in command:
            self._open_terminal(command)
            return ""
        if command.endswith(" -w"):
            return self._watch(command)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        print(f"$ {command}\n{done.stdout}{done.stderr}")
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def log(self) -> Path:
        return self.directory / "terminal.log"

    def close(self) -> None:
        for process in self._terminals:
            process.terminate()
            process.wait(180)

    def _open_terminal(self, command: str) -> None:
        with self.log.open("ab") as log:
            words = ["bash", "-c", _replacing_shell(command)]
            self._terminals.append(
                subprocess.Popen(
                    words, cwd=self.directory, env=self.environment, stdout=log, stderr=log
                )
            )

    def _watch(self, command: str) -> str:
        words = ["timeout", str(WATCHED), *command.split()]
        done = subprocess.run(
            words, cwd=self.directory, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 124, f"{command} ended by itself:\n{done.stdout}{done.stderr}"
        return done.stdout


def _replacing_shell(command: str) -> str:
    """With `exec` after the assignments, so that a signal reaches the program itself."""
    return re.sub(r"^((?:[A-Z_]+=\S+ )*)", r"\1exec ", command)
