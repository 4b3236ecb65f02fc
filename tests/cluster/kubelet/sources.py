"""Gets what a pod refers to from the API server: ConfigMaps, Secrets, volumes, tokens."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from rlhf_operator.local.mounts import Files, Needs, Sources

from cluster.kubelet.api import Api, Object
from cluster.kubelet.runtime import NotReady

TOKEN_SECONDS = 3600
API_AUDIENCE = ""


class Fetcher:
    """Asks on behalf of one pod."""

    def __init__(self, api: Api, pod: Object) -> None:
        self._api = api
        self._pod = pod
        self._namespace = f"/api/v1/namespaces/{pod['metadata']['namespace']}"

    async def fetch(self, needs: Needs) -> Sources:
        """All that there is; what is not there is left out. Raises NotReady for a claim."""
        return Sources(
            config_maps=await self._files("configmaps", needs.config_maps),
            secrets=await self._files("secrets", needs.secrets),
            claims={claim: await self._folder(claim) for claim in sorted(needs.claims)},
            tokens={audience: await self._token(audience) for audience in sorted(needs.audiences)},
        )

    async def service(self) -> Object | None:
        """The headless Service of the pod's subdomain."""
        subdomain = self._pod["spec"].get("subdomain")
        return await self._api.get(f"{self._namespace}/services/{subdomain}") if subdomain else None

    async def _files(self, plural: str, names: Iterable[str]) -> dict[str, Files]:
        found = {}
        for name in sorted(names):
            if there := await self._api.get(f"{self._namespace}/{plural}/{name}"):
                found[name] = _decoded(plural, there)
        return found

    async def _folder(self, claim: str) -> Path:
        """The directory of the volume that the claim is bound to."""
        path = f"{self._namespace}/persistentvolumeclaims/{claim}"
        there = await self._api.get(path)
        if there is None:
            raise NotReady("", f'persistentvolumeclaim "{claim}" not found', is_event=True)
        name = there["spec"].get("volumeName")
        volume = await self._api.get(f"/api/v1/persistentvolumes/{name}") if name else None
        if volume is None or there["status"].get("phase") != "Bound":
            raise NotReady("", f'persistentvolumeclaim "{claim}" is not bound', is_event=True)
        source = volume["spec"].get("hostPath") or volume["spec"]["local"]
        return Path(source["path"])

    async def _token(self, audience: str) -> str:
        """Bound to the pod, as a projected volume's is."""
        meta, spec = self._pod["metadata"], self._pod["spec"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        request: Object = {"boundObjectRef": bound, "expirationSeconds": TOKEN_SECONDS}
        if audience != API_AUDIENCE:
            request["audiences"] = [audience]
        account = spec.get("serviceAccountName", "default")
        path = f"{self._namespace}/serviceaccounts/{account}/token"
        made = await self._api.post(path, {"spec": request})
        if made is None:
            raise NotReady("", f"failed to fetch token: serviceaccount {account}", is_event=True)
        token: str = made["status"]["token"]
        return token


def require(needs: Needs, sources: Sources) -> None:
    """Raises NotReady where a volume's ConfigMap or Secret is not there."""
    for kind, wanted, known in (
        ("configmap", needs.config_maps, sources.config_maps),
        ("secret", needs.secrets, sources.secrets),
    ):
        if missing := sorted(wanted - known.keys()):
            raise NotReady(
                "", f'MountVolume.SetUp failed: {kind} "{missing[0]}" not found', is_event=True
            )


def _decoded(plural: str, found: Object) -> Files:
    coded = found.get("data" if plural == "secrets" else "binaryData") or {}
    plain = {} if plural == "secrets" else found.get("data") or {}
    return {
        **{name: text.encode() for name, text in plain.items()},
        **{name: base64.b64decode(text) for name, text in coded.items()},
    }
