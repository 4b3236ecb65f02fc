"""A plain, synchronous client for tests: dicts in, dicts out.

A resource is named as in the API's paths, with its version: `v1/pods`, `batch/v1/jobs`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiException

Object = dict[str, Any]

PATCHES: Final = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
DEFINITIONS: Final = "apiextensions.k8s.io/v1/customresourcedefinitions"
REQUEST_TIMEOUT: Final = 30.0
POLL: Final = 0.05
"""Seconds."""
PATIENCE: Final = 180.0
"""Seconds that tests wait for what takes one or two on a machine with nothing else to do."""


class Client:
    """Requests as one user of a cluster; every error is the API server's own (ApiException)."""

    def __init__(self, kubeconfig: Path) -> None:
        self._api = config.new_client_from_config(str(kubeconfig))
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    def create(
        self, manifest: Object, namespace: str | None = None, *, dry_run: bool = False
    ) -> Object:
        """What was made; in a dry run, what would be."""
        path = self._path_of(manifest, namespace)
        return self.request("POST", path, manifest, {"dryRun": "All"} if dry_run else None)

    def apply(
        self, manifest: Object, namespace: str | None = None, *, manager: str = "tests"
    ) -> Object:
        """Server-side apply, taking over what others own."""
        path = f"{self._path_of(manifest, namespace)}/{manifest['metadata']['name']}"
        query = {"fieldManager": manager, "force": "true"}
        return self.request("PATCH", path, manifest, query, "application/apply-patch+yaml")

    def define(self, definition: Object) -> None:
        """Applies a CustomResourceDefinition; returns once its objects are served and discovered,
        which is some time after it is established."""
        self.apply(definition)
        self.wait_for(DEFINITIONS, definition["metadata"]["name"], is_established)
        deadline = time.monotonic() + PATIENCE
        while not self._serves(definition["spec"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{definition['metadata']['name']} is not served")
            time.sleep(POLL)

    def _serves(self, spec: Object) -> bool:
        """404 before, and 429 while its storage is made."""
        plural = spec["names"]["plural"]
        versions = [f"{spec['group']}/{of['name']}" for of in spec["versions"] if of["served"]]
        try:
            told = [self.request("GET", _root(version))["resources"] for version in versions]
            for version in versions:
                self.list(f"{version}/{plural}")
        except ApiException as error:
            if error.status not in (404, 429, 503):
                raise
            return False
        return all(plural in [resource["name"] for resource in one] for one in told)

    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        return self.request("GET", _path(resource, namespace, name))

    def find(self, resource: str, name: str, namespace: str | None = None) -> Object | None:
        """None where there is no such object."""
        try:
            return self.get(resource, name, namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, resource: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All namespaces where none is given; selectors as kubectl takes them."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        listed = self.request("GET", _path(resource, namespace), None, query)
        return list(listed["items"])

    def patch(
        self,
        resource: str,
        name: str,
        body: Any,
        namespace: str | None = None,
        *,
        subresource: str = "",
        kind: str = "merge",
    ) -> Object:
        path = _path(resource, namespace, name, subresource)
        return self.request("PATCH", path, body, content_type=PATCHES[kind])

    def post(
        self, resource: str, name: str, subresource: str, body: Object, namespace: str | None = None
    ) -> Object:
        """Creates a subresource: a pod's `eviction` or `binding`, a service account's `token`."""
        return self.request("POST", _path(resource, namespace, name, subresource), body)

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str | None = None,
        *,
        grace: int | None = None,
        propagation: str = "Background",
    ) -> None:
        """Asks for the deletion and does not wait for it. What is not there is no error."""
        options: Object = {"propagationPolicy": propagation}
        if grace is not None:
            options |= {"gracePeriodSeconds": grace}
        try:
            self.request("DELETE", _path(resource, namespace, name), options)
        except ApiException as error:
            if error.status != 404:
                raise

    def delete_all(self, resource: str, namespace: str, *, grace: int | None = None) -> None:
        """Asks for the deletion of all of them in a namespace."""
        query = {} if grace is None else {"gracePeriodSeconds": str(grace)}
        self.request("DELETE", _path(resource, namespace), None, query)

    def watch(
        self, resource: str, namespace: str | None = None, *, version: str = "", seconds: int = 300
    ) -> Iterator[tuple[str, Object]]:
        """Pairs (ADDED | MODIFIED | DELETED | ERROR, object), until the server ends the watch.

        Without a version it begins with what there is, as ADDED. It is open when this returns.
        """
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        url = self._url(_path(resource, namespace), query)
        response = self._api.call_api("GET", url, dict(self._headers()), None)
        _raise_for_status(response.status, response)
        return _events(response.response)

    def wait_for(
        self,
        resource: str,
        name: str,
        predicate: Callable[[Object | None], bool],
        namespace: str | None = None,
        *,
        timeout: float = PATIENCE,
    ) -> Object | None:
        """The object once the predicate holds for it (None: it does not exist).

        Goes on while the API server is away. Raises TimeoutError with what was seen last.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                seen: Object | str | None = self.find(resource, name, namespace)
            except (urllib3.exceptions.HTTPError, ApiException) as error:
                if isinstance(error, ApiException) and error.status < 500 and error.status != 429:
                    raise
                seen = str(error)
            if not isinstance(seen, str) and predicate(seen):
                return seen
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{resource} {namespace}/{name}: not as awaited after {timeout:g} s:\n"
                    + json.dumps(seen, indent=2)[:4000]
                )
            time.sleep(POLL)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = self._headers() | {"Content-Type": content_type}
        url = self._url(path, query or {})
        response = self._api.call_api(method, url, headers, body, _request_timeout=REQUEST_TIMEOUT)
        _raise_for_status(response.status, response)
        return dict(json.loads(response.read()))

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {"Accept": "application/json"}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        return headers

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        given = {name: value for name, value in query.items() if value}
        return f"{self._api.configuration.host}{path}" + (f"?{urlencode(given)}" if given else "")

    def _path_of(self, manifest: Object, namespace: str | None) -> str:
        """Where objects of a manifest's kind are, in its own namespace or the one given."""
        version, kind = manifest["apiVersion"], manifest["kind"]
        if (version, kind) not in self._plurals:
            for found in self.request("GET", _root(version))["resources"]:
                if "/" not in found["name"]:
                    self._plurals[version, found["kind"]] = found["name"], found["namespaced"]
        plural, namespaced = self._plurals[version, kind]
        inside = manifest["metadata"].get("namespace", namespace)
        if namespaced and not inside:
            raise ValueError(f"{kind} {manifest['metadata'].get('name')}: no namespace given")
        return _path(f"{version}/{plural}", inside if namespaced else None)


def is_established(definition: Object | None) -> bool:
    """Whether the API server serves a CustomResourceDefinition."""
    found = ((definition or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in found)


def _root(version: str) -> str:
    return f"/{'apis' if '/' in version else 'api'}/{version}"


def _path(resource: str, namespace: str | None, *rest: str) -> str:
    version, _, plural = resource.rpartition("/")
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{_root(version)}{inside}/{plural}" + "".join(
        f"/{quote(part)}" for part in rest if part
    )


def _raise_for_status(status: int, response: Any) -> None:
    if status >= 400:
        response.read()
        raise ApiException(http_resp=response)


def _events(response: urllib3.HTTPResponse) -> Iterator[tuple[str, Object]]:
    pending = b""
    try:
        for chunk in response.stream(amt=None):
            *lines, pending = (pending + chunk).split(b"\n")
            for event in map(json.loads, filter(None, lines)):
                yield event["type"], event["object"]
    finally:
        response.close()
