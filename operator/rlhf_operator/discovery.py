"""What the API server serves: one request for all groups, versions and kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from rlhf_operator.api import Api, Object, Resource

AGGREGATED: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

Served = Mapping[tuple[str, str], Resource]
"""Resources by apiVersion and kind."""


async def discover(api: Api) -> Served:
    """All resources of named groups. Raises ApiError. Kubernetes 1.30 and newer."""
    answer = await api.request("GET", "/apis", accept=AGGREGATED, label="apis")
    return {(item.api_version, item.kind): item for item in _resources(answer)}


def _resources(answer: Object) -> Iterator[Resource]:
    for group in answer.get("items") or []:
        for version in group["versions"]:
            for item in version.get("resources") or []:
                kind = (item.get("responseKind") or {}).get("kind")
                if kind:
                    where = f"{group['metadata']['name']}/{version['version']}"
                    yield Resource(where, kind, item["resource"])


def kinds(served: Served) -> frozenset[str]:
    """As ``group/version/Kind``."""
    return frozenset(f"{version}/{kind}" for version, kind in served)
