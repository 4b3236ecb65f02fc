"""Variables that refer to ConfigMaps and Secrets, which no pod of a run on one machine has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rlhf_operator.local.mounts import Files, Needs, Sources

from cluster.kubelet.api import Object


def environment_needs(container: Object) -> Needs:
    """What the variables refer to."""
    values = [item.get("valueFrom", {}) for item in container.get("env", [])]
    whole = container.get("envFrom", [])
    return Needs(
        config_maps=_names(values, "configMapKeyRef") | _names(whole, "configMapRef"),
        secrets=_names(values, "secretKeyRef") | _names(whole, "secretRef"),
        claims=frozenset(),
        audiences=frozenset(),
    )


def _names(items: Sequence[Object], kind: str) -> frozenset[str]:
    return frozenset(item[kind]["name"] for item in items if kind in item)


def with_values(pod: Object, sources: Sources) -> Object:
    """The pod with what its variables refer to in their place, as a kubelet reads it.

    Raises LookupError that names what is not there, in a kubelet's words.
    """
    container, *others = pod["spec"]["containers"]
    items = [*_of_whole(container, sources)]
    for item in container.get("env", []):
        reference = set(item.get("valueFrom", {})) & {"configMapKeyRef", "secretKeyRef"}
        items += _of_key(pod, item, sources) if reference else [item]
    container = {key: value for key, value in container.items() if key != "envFrom"}
    spec = {**pod["spec"], "containers": [{**container, "env": items}, *others]}
    return {**pod, "spec": spec}


def _of_whole(container: Object, sources: Sources) -> Iterator[Object]:
    """`envFrom`: all keys of a ConfigMap or Secret."""
    for item in container.get("envFrom", []):
        files = _keys_of(item.get("configMapRef"), item.get("secretRef"), sources)
        for key, content in (files or {}).items():
            yield _plain(item.get("prefix", "") + key, content)


def _of_key(pod: Object, item: Object, sources: Sources) -> list[Object]:
    """One variable; none for an optional one whose source is not there."""
    config_map, secret = (item["valueFrom"].get(k) for k in ("configMapKeyRef", "secretKeyRef"))
    reference = config_map or secret
    files = _keys_of(config_map, secret, sources)
    if files is not None and reference["key"] in files:
        return [_plain(item["name"], files[reference["key"]])]
    if reference.get("optional"):
        return []
    kind = "ConfigMap" if config_map else "Secret"
    where = f"{pod['metadata']['namespace']}/{reference['name']}"
    raise LookupError(f"couldn't find key {reference['key']} in {kind} {where}")


def _plain(name: str, content: bytes) -> Object:
    """A variable of that text, in which no reference to another one is looked for."""
    return {"name": name, "value": content.decode().replace("$", "$$")}


def _keys_of(config_map: Object | None, secret: Object | None, sources: Sources) -> Files | None:
    """The keys of the one that is named; None for an optional one that is not there."""
    kind = "configmap" if config_map else "secret"
    reference: Object = config_map or secret or {}
    known: Mapping[str, Files] = sources.config_maps if config_map else sources.secrets
    if reference["name"] not in known and not reference.get("optional"):
        raise LookupError(f'{kind} "{reference["name"]}" not found')
    return known.get(reference["name"])
