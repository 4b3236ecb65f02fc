"""Where checkpoints live."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from rlhf_api.base import Contract, ObjectName, Quantity

FOLDER_PATTERN: Final = r"^(s3|gs)://[a-z0-9][a-z0-9._-]*(/[^\x00-\x1f]*)?$"


class Claim(Contract):
    """A PersistentVolumeClaim that the operator makes for the job."""

    size: Quantity = Field(default="100Gi", description="Size of the volume when it is made.")
    storage_class: ObjectName | None = Field(
        default=None, description="StorageClass; default: the cluster's."
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = Field(
        default="ReadWriteMany", description="More than one node needs ReadWriteMany."
    )
    retain: bool = Field(
        default=True,
        description="Keep the volume when the RLHFJob is deleted; read when it is made.",
    )


class Checkpoints(Contract):
    """Storage of checkpoints and outputs: at most one of claim, existingClaim and uri."""

    claim: Claim | None = Field(
        default=None, description="A new claim; the default, with its defaults."
    )
    existing_claim: ObjectName | None = Field(
        default=None, description="Name of a claim that is there."
    )
    uri: str | None = Field(
        default=None,
        max_length=1024,
        pattern=FOLDER_PATTERN,
        description="Folder in an object store. Each pod works on a copy of its own there, on its "
        "node's disk.",
        examples=["s3://models/team-a"],
    )
    secret: ObjectName | None = Field(
        default=None,
        description="Secret with the object store's credentials: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or credentials.json (Google). Default: the identity of the pods "
        "(resources.serviceAccount) or of their node.",
    )
    local_size: Quantity | None = Field(
        default=None,
        description="With uri: most that a pod's copy may take of its node's disk; pods that train "
        "go to nodes with that much. Default: 500Gi at most, on any node.",
        examples=["2Ti"],
    )
    sub_path: str = Field(
        default="",
        max_length=512,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$",
        description="Folder in the claim.",
    )
