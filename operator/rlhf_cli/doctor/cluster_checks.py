"""The cluster itself: version, devices, gang schedulers, storage classes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from rlhf_operator.api import Resource
from rlhf_operator.discovery import discover, kinds
from rlhf_operator.render.gang import GANGS
from rlhf_operator.render.platform import Platform

from rlhf_cli.doctor.findings import Finding, Look

OLDEST: Final = (1, 31)
NODES: Final = Resource("v1", "Node", "nodes")
CLASSES: Final = Resource("storage.k8s.io/v1", "StorageClass", "storageclasses")
DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
NO_DEVICES: Final = ("kubernetes.io/", "hugepages-", "attachable-volumes-")
SHARED: Final = re.compile(
    r"nfs|cephfs|efs\.csi|filestore|azurefile|file\.csi|lustre|gpfs|spectrumscale|weka|beegfs|"
    r"glusterfs|juicefs|quobyte|portworx|longhorn|trident|vast|manila|fsx|nas",
    re.IGNORECASE,
)
"""Words in the names of provisioners that can give ReadWriteMany; no API tells it."""


async def server(look: Look) -> list[Finding]:
    """Kubernetes' version."""
    told = await look.api.request("GET", "/version")
    text = str(told.get("gitVersion", ""))
    numbers = re.match(r"v?(\d+)\.(\d+)", text)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        advice = f"upgrade the cluster to {needed} or newer"
        return [Finding("error", "Kubernetes", f"{text} is too old", advice)]
    return [Finding("ok", "Kubernetes", text)]


async def devices(look: Look) -> list[Finding]:
    """Which devices the nodes offer, and how many."""
    nodes = await look.listed(NODES)
    counts: Counter[str] = Counter()
    for node in nodes:
        offered = (node.get("status") or {}).get("allocatable") or {}
        for name, amount in offered.items():
            if "/" in name and not name.startswith(NO_DEVICES) and str(amount).isdigit():
                counts[name] += int(amount)
    found = {name: count for name, count in counts.items() if count}
    if not found:
        return [
            Finding(
                "warning",
                "Devices",
                f"none of {len(nodes)} nodes offers a device",
                "install a device plugin (for NVIDIA: the GPU operator); without devices, jobs "
                "with gpusPerNode: 0 train on the CPU",
            )
        ]
    text = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    return [Finding("ok", "Devices", f"{text} on {len(nodes)} nodes")]


async def gang_schedulers(look: Look) -> list[Finding]:
    """Which of the schedulers that are supported the API server knows."""
    platform = Platform(served=kinds(await discover(look.api)))
    served = [name for name, gang in GANGS.items() if name != "none" and gang.kinds(platform)]
    if served:
        return [Finding("ok", "Gang scheduling", ", ".join(served))]
    return [
        Finding(
            "warning",
            "Gang scheduling",
            "no gang scheduler is served: two jobs may each hold half of what they need",
            "install one of Volcano, KAI, Kueue, Koordinator or Coscheduling, or use Kubernetes "
            "1.36 with its own",
        )
    ]


async def storage(look: Look) -> list[Finding]:
    """Whether checkpoints find a volume that several nodes can mount."""
    classes = await look.listed(CLASSES)
    default = [
        item["metadata"]["name"]
        for item in classes
        if (item["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"
    ]
    shared = [item["metadata"]["name"] for item in classes if SHARED.search(item["provisioner"])]
    name_one = "set checkpoints.claim.storageClass, or checkpoints.existingClaim"
    found = []
    if not classes:
        advice = (
            "install a CSI driver with shared file systems, or use checkpoints.existingClaim or "
            "checkpoints.uri"
        )
        return [Finding("error", "Storage", "there is no storage class", advice)]
    if not default:
        found.append(Finding("warning", "Storage", "no storage class is the default", name_one))
    if not shared:
        names = ", ".join(item["metadata"]["name"] for item in classes)
        said = f"none of the classes {names} is known to give ReadWriteMany"
        advice = "jobs on more than one node need it: " + name_one
        return [*found, Finding("warning", "Storage", said, advice)]
    text = f"{', '.join(shared)} can give ReadWriteMany"
    if default and default[0] not in shared:
        said = f"{text}; the default class {default[0]} is not known to"
        return [Finding("warning", "Storage", said, name_one)]
    return [*found, Finding("ok", "Storage", text)]
