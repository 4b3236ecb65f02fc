"""Storage of a cluster with one node: its folders, as volumes that somebody has made before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cluster.client import Client

Object = dict[str, Any]

STORAGE_CLASS: Final[Object] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "folders"},
    "provisioner": "kubernetes.io/no-provisioner",
}


def offer_volume(client: Client, folder: Path, name: str, *, size: str = "1Gi") -> Path:
    """A folder of root's as a volume; the kubelet gives it to the group of the pods that mount it,
    which it never does for a hostPath."""
    place = folder / name
    place.mkdir()
    here = {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": STORAGE_CLASS["metadata"]["name"],
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteMany"],
            "local": {"path": str(place)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
    client.apply(volume)
    return place


def offer_claim(client: Client, namespace: str, name: str) -> None:
    """On the volume of that name."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": STORAGE_CLASS["metadata"]["name"],
            "volumeName": name,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    client.apply(claim, namespace)
