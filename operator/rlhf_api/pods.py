"""What the pods of a job are given besides devices: images, environment, Secrets."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from rlhf_api.base import ATOMIC, Contract, ObjectName
from rlhf_api.lists import KeyedBy

Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x20]+$")]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]

RESERVED_ENV: Final = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "DS_ACCELERATOR",
        "HF_HUB_OFFLINE",
        "HOME",
        "JOB_COMPLETION_INDEX",
        "MASTER_ADDR",
        "MASTER_PORT",
        "PATH",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONUNBUFFERED",
        "RANK",
        "TMPDIR",
        "WORLD_SIZE",
    }
)
RESERVED_ENV_PREFIXES: Final = (
    "GROUP_",
    "KUBEFLOW_TRAINER_",
    "KUBERNETES_",
    "LD_",
    "LOCAL_",
    "NVIDIA_",
    "PET_",
    "RLHF_",
    "ROLE_",
    "TORCHELASTIC_",
)
"""Variables that load code, widen a container's reach, or are the launcher's or ours."""


def is_reserved(name: str) -> bool:
    """Whether an environment variable is not the user's to set."""
    return name in RESERVED_ENV or name.startswith(RESERVED_ENV_PREFIXES)


class SecretKeySelector(Contract):
    """As core/v1 SecretKeySelector."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: ObjectName = Field(description="A Secret in the job's namespace.")
    key: str = Field(
        min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Key in it."
    )


class EnvVarSource(Contract):
    """As core/v1 EnvVarSource, of Secrets alone."""

    secret_key_ref: SecretKeySelector = Field(description="A key of a Secret.")


class EnvVar(Contract):
    """As core/v1 EnvVar: a value, or a key of a Secret."""

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name; LD_*, NVIDIA_*, PYTHONPATH and the launcher's own are refused.",
    )
    value: str | None = Field(default=None, max_length=8192, description="Its value.")
    value_from: EnvVarSource | None = Field(default=None, description="Where its value is.")


class SecretMount(Contract):
    """A Secret whose keys pods find as files."""

    name: ObjectName = Field(description="A Secret in the job's namespace.")
    mount_path: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$",
        description="Folder of its files; default: /rlhf/secrets/NAME.",
    )


Environment = Annotated[list[EnvVar], Field(max_length=64), KeyedBy("name")]
SecretMounts = Annotated[list[SecretMount], Field(max_length=16), KeyedBy("name")]
Command = Annotated[
    list[Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]],
    Field(min_length=1, max_length=128),
]
