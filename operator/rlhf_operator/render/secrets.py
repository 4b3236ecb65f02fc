"""Secrets by name, as files below the working directory; never their contents.

On one machine none is mounted: processes there have the user's own credentials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from rlhf_api.pods import SecretMount
from rlhf_api.run import PREPARE, SECRETS, WORKDIR
from rlhf_api.sources import SourceRef

from rlhf_operator.names import SHORT_HASH
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform

GROUP_READABLE: Final = 0o440
"""The pod's user reads them through its fsGroup."""


class Mounted(NamedTuple):
    """A Secret, and the folder in which its keys are files."""

    name: str
    path: str

    @property
    def volume(self) -> Object:
        """The pod's volume."""
        source = {"secretName": self.name, "defaultMode": GROUP_READABLE}
        return {"name": volume_name(self.name), "secret": source}

    @property
    def mount(self) -> Object:
        """The container's mount."""
        return {"name": volume_name(self.name), "mountPath": self.path, "readOnly": True}


def volume_name(secret: str) -> str:
    """A Secret's name may be longer than a volume's."""
    return f"secret-{hashlib.sha256(secret.encode()).hexdigest()[:SHORT_HASH]}"


def secrets_of(key: AttemptKey, refs: Iterable[SourceRef], platform: Platform) -> list[Mounted]:
    """Secrets of an attempt: the user's own, checkpoint credentials; sources' for `prepare`."""
    if platform.is_one_machine:
        return []
    spec = key.job.spec
    asked = [*spec.secrets]
    if key.stage != PREPARE:
        asked += spec.stages.present()[key.stage].secrets
    names = [spec.checkpoints.secret]
    if key.stage == PREPARE:
        names += [getattr(ref.value, "secret", None) for ref in refs]
    asked += [SecretMount(name=name) for name in names if name]
    mounted = [Mounted(item.name, item.mount_path or default_path(item.name)) for item in asked]
    return list(dict.fromkeys(mounted))


def default_path(secret: str) -> str:
    """Where a Secret's files are found unless the user says."""
    return f"{WORKDIR}/{SECRETS}/{secret}"
