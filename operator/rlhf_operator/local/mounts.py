"""A pod's volumes on one machine: a working directory of links to them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlhf_operator.local.errors import LocalRunError

Object = dict[str, Any]
Files = Mapping[str, bytes]


class Needs(NamedTuple):
    """Names of what a pod refers to."""

    config_maps: frozenset[str]
    secrets: frozenset[str]
    claims: frozenset[str]
    audiences: frozenset[str]  # of the service-account tokens; "": the API server's own


class Sources(NamedTuple):
    """What a pod refers to, by name."""

    config_maps: Mapping[str, Files] = {}
    secrets: Mapping[str, Files] = {}
    claims: Mapping[str, Path] = {}
    tokens: Mapping[str, str] = {}  # by audience


def mounted(pod_spec: Object) -> list[tuple[Object, Object]]:
    """Each mount below the working directory with its volume; the others are the host's."""
    volumes = {volume["name"]: volume for volume in pod_spec.get("volumes", [])}
    container = pod_spec["containers"][0]
    return [
        (item, volumes[item["name"]])
        for item in container.get("volumeMounts", [])
        if local_path(container, item["mountPath"]) is not None
    ]


def volume_needs(pod_spec: Object) -> Needs:
    """What has to be there before the pod's volumes can be mounted."""
    volumes = [volume for _, volume in mounted(pod_spec)]
    parts = [part for volume in volumes for part in [volume, *_projections(volume)]]
    return Needs(
        config_maps=frozenset(part["configMap"]["name"] for part in parts if "configMap" in part),
        secrets=frozenset(_secret(part) for part in parts if "secret" in part),
        claims=frozenset(
            part["persistentVolumeClaim"]["claimName"]
            for part in parts
            if "persistentVolumeClaim" in part
        ),
        audiences=frozenset(
            part["serviceAccountToken"].get("audience", "")
            for part in parts
            if "serviceAccountToken" in part
        ),
    )


def mount(directory: Path, pod_spec: Object, sources: Sources) -> None:
    """Puts a pod's volumes below its working directory. Sources must have all that it needs."""
    container = pod_spec["containers"][0]
    for item, volume in mounted(pod_spec):
        target = directory / _inside(container, item["mountPath"])
        target.parent.mkdir(parents=True, exist_ok=True)
        _bring(volume, item.get("subPath", ""), target, sources)
    message = termination_file(container, directory)
    if message is not None:
        message.parent.mkdir(parents=True, exist_ok=True)


def termination_file(container: Object, directory: Path) -> Path | None:
    """Where the container leaves its termination message; None where that is the host's."""
    path = local_path(container, container.get("terminationMessagePath", "/dev/termination-log"))
    return directory / path if path is not None else None


def local_path(container: Object, path: str) -> PurePosixPath | None:
    """A path of the container relative to its working directory; None where it lies elsewhere."""
    home = container.get("workingDir")
    inside = PurePosixPath(path)
    return inside.relative_to(home) if home and inside.is_relative_to(home) else None


def _inside(container: Object, path: str) -> PurePosixPath:
    return PurePosixPath(path).relative_to(container["workingDir"])


def _bring(volume: Object, sub_path: str, target: Path, sources: Sources) -> None:
    if "persistentVolumeClaim" in volume:
        _link(target, sources.claims[volume["persistentVolumeClaim"]["claimName"]] / sub_path)
    elif "hostPath" in volume:
        target.symlink_to(os.path.abspath(os.path.expanduser(volume["hostPath"]["path"])))
    elif "emptyDir" in volume:
        target.mkdir(parents=True)
    elif parts := [volume, *_projections(volume)]:
        target.mkdir(parents=True)
        for part in parts:
            _write_files(target, _files(part, sources))


def _files(part: Object, sources: Sources) -> Files:
    """The files of a volume, or of one part of a projected one."""
    if "configMap" in part:
        return _selected(part["configMap"], sources.config_maps[part["configMap"]["name"]])
    if "secret" in part:
        if _secret(part) not in sources.secrets:
            raise LocalRunError(
                f"Secret {_secret(part)} cannot be read on one machine: "
                "leave it out, and set the variable that it is for before the run."
            )
        return _selected(part["secret"], sources.secrets[_secret(part)])
    if "serviceAccountToken" in part:
        token = part["serviceAccountToken"]
        return {token["path"]: sources.tokens[token.get("audience", "")].encode()}
    if "projected" in part:
        return {}  # its parts follow
    kinds = ", ".join(name for name in part if name != "name")
    raise LocalRunError(
        f"A volume of kind {kinds} (oci://…) cannot be used on one machine: "
        "name a local path, pvc:// or hf:// instead."
    )


def _projections(volume: Object) -> Iterable[Object]:
    parts: list[Object] = volume.get("projected", {}).get("sources", [])
    return parts


def _secret(part: Object) -> str:
    """A volume calls it secretName, a projection name."""
    name: str = part["secret"].get("secretName") or part["secret"]["name"]
    return name


def _selected(part: Object, files: Files) -> Files:
    """All keys, or those of `items` under their own paths."""
    if "items" not in part:
        return files
    return {item["path"]: files[item["key"]] for item in part["items"]}


def _link(target: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target.symlink_to(folder.absolute(), target_is_directory=True)


def _write_files(folder: Path, files: Files) -> None:
    """Readable by the owner alone: one of them may be a token."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(content)
