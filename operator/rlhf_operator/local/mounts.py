"""A pod's volumes on one machine: a working directory of links to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlhf_operator.local.errors import LocalRunError
from rlhf_operator.render.volumes import WORKDIR

Object = dict[str, Any]


class Sources(NamedTuple):
    """What volumes are made of."""

    volumes: Path  # one folder a claim
    config_maps: Mapping[str, Mapping[str, str]]  # files by ConfigMap
    token: str


def mount(directory: Path, pod_spec: Object, sources: Sources) -> None:
    """Puts a pod's volumes below its working directory; /dev/shm and the like are the host's."""
    volumes = {volume["name"]: volume for volume in pod_spec["volumes"]}
    container = pod_spec["containers"][0]
    for item in container["volumeMounts"]:
        place = local_path(item["mountPath"])
        if place is not None:
            target = directory / place
            target.parent.mkdir(parents=True, exist_ok=True)
            _bring(volumes[item["name"]], item.get("subPath", ""), target, sources)
    message = local_path(container["terminationMessagePath"])
    if message is not None:
        (directory / message).parent.mkdir(parents=True, exist_ok=True)


def local_path(path: str) -> PurePosixPath | None:
    """A path of the container relative to its working directory; None where it lies elsewhere."""
    inside = PurePosixPath(path)
    return inside.relative_to(WORKDIR) if inside.is_relative_to(WORKDIR) else None


def _bring(volume: Object, sub_path: str, target: Path, sources: Sources) -> None:
    if "configMap" in volume:
        _write_files(target, sources.config_maps[volume["configMap"]["name"]])
    elif "persistentVolumeClaim" in volume:
        _link(target, sources.volumes / volume["persistentVolumeClaim"]["claimName"] / sub_path)
    elif "hostPath" in volume:
        target.symlink_to(os.path.abspath(os.path.expanduser(volume["hostPath"]["path"])))
    elif "projected" in volume:
        _write_files(target, {"token": sources.token})
    elif "emptyDir" in volume:
        target.mkdir(parents=True)
    else:
        kinds = ", ".join(name for name in volume if name != "name")
        raise LocalRunError(
            f"A volume of kind {kinds} (oci://…) cannot be used on one machine: "
            "name a local path, pvc:// or hf:// instead."
        )


def _link(target: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target.symlink_to(folder.absolute(), target_is_directory=True)


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Readable by the owner alone: one of them is a token."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8")
