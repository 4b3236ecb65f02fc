"""Images for containerd: from buildah's storage, and one of a single program."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from node_files import PAUSE

REGISTRY = "docker.io/library"
"""What a name without a registry stands for."""


class NodeImages:
    """Those of one containerd."""

    def __init__(self, socket: Path) -> None:
        self._ctr = ["ctr", "--address", str(socket), "--namespace", "k8s.io"]

    def take(self, name: str) -> None:
        """Copies an image out of buildah's storage, as a kubelet would call it; once.

        Raises RuntimeError where that fails.
        """
        full = f"{REGISTRY}/{name}"
        if full in self.names():
            return
        archive = f"docker-archive:/dev/stdout:{full}"
        command = ["buildah", "push", "--quiet", f"localhost/{name}", archive]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as source:
            self._run("images", "import", "-", stdin=source.stdout)
        if source.returncode:
            raise RuntimeError(
                f"{name} cannot be read from buildah's storage: run `make images BUILDER=buildah`"
            )
        self._drop_layers()

    def _drop_layers(self) -> None:
        """They are unpacked; what they were unpacked from is as large again."""
        for line in self._run("content", "list").splitlines():
            if "containerd.io/uncompressed=" in line:
                self._run("content", "remove", line.split()[0])

    def take_pause(self, program: Path, folder: Path) -> None:
        """The image whose only file is that program."""
        archive = folder / "pause.tar"
        write_image(program, PAUSE, archive)
        with archive.open("rb") as file:
            self._run("images", "import", "-", stdin=file)

    def containers(self) -> list[str]:
        """All that there are, by their numbers; pods have one of their own beside each other's."""
        return self._run("containers", "list", "--quiet").split()

    def names(self) -> list[str]:
        return self._run("images", "list", "--quiet").split()

    def _run(self, *words: str, stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
        done = subprocess.run(
            [*self._ctr, *words], stdin=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(words)}: {done.stderr}")
        return done.stdout


def write_image(program: Path, name: str, archive: Path) -> None:
    """An image of one file, which it starts, as `docker save` would write it."""
    layer = _tar({program.name: program.read_bytes()}, mode=0o755)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    archive.write_bytes(_tar(files, mode=0o644))


def _tar(files: dict[str, bytes], mode: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()
