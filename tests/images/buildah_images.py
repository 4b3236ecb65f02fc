"""Images in buildah's storage, and root file systems made from them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple


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
        """The one of that name. Raises RuntimeError where there is none."""
        local = f"localhost/{name}"
        config = json.loads(_buildah("inspect", "--type=image", local))["OCIv1"]["config"]
        return cls(
            local,
            config.get("User", ""),
            dict(item.partition("=")[::2] for item in config.get("Env", [])),
            config.get("Entrypoint", []),
            config.get("WorkingDir", "/"),
            config.get("Labels", {}),
            list(config.get("ExposedPorts", {})),
        )


class Root:
    """A root file system made from an image, until it is removed."""

    def __init__(self, image: Image) -> None:
        self._container = _buildah("from", "--pull-never", image.name)
        self.path = Path(_buildah("mount", self._container))

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

    def make_place(self, path: str, *, is_folder: bool) -> Path:
        """A place where something can be mounted, as a container runtime makes it."""
        place = self.place(path)
        if is_folder:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        return place

    def remove(self) -> None:
        """Leaves nothing of it."""
        _buildah("umount", self._container)
        _buildah("rm", self._container)


def _buildah(*words: str) -> str:
    done = subprocess.run(["buildah", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"buildah {' '.join(words)}: {done.stderr}")
    return done.stdout.strip()
