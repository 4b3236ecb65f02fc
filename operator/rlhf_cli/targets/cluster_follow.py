"""What there is of a kind, then each change: one list and a watch, not a list every few seconds.

Of events above all: an API server has none of them in memory, so that each list of them, whatever
it selects, reads those of the whole namespace from etcd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from rlhf_operator.api import Api, ApiError, Resource, pause_after

from rlhf_cli.targets.refusals import refusal
from rlhf_cli.targets.target import Object

RETRIES: Final = 5
LISTED: Final = "LISTED"
"""Stands after the changes that a whole list told, of no object."""
Change = tuple[str, Object]
"""(ADDED | MODIFIED | DELETED | LISTED, object)"""


async def followed(
    api: Api, resource: Resource, namespace: str | None, *, selector: str = "", fields: str = ""
) -> AsyncIterator[Change]:
    """Goes on after a connection that broke. Raises Failure where that, or a refusal, stays."""
    seen: dict[str, Object] = {}
    was_answered, broken = False, 0
    while True:
        try:
            items, version = await api.list(resource, namespace, selector=selector, fields=fields)
            for change in differences(seen, items):
                yield change
            yield LISTED, {}
            was_answered, broken = True, 0
            async for kind, item in api.watch(
                resource, namespace, version, selector=selector, fields=fields
            ):
                if kind != "BOOKMARK":
                    _note(seen, kind, item)
                    yield kind, item
        except ApiError as error:
            broken += 1
            may_pass = was_answered and (error.is_passing or error.code == 410)
            if not may_pass or broken > RETRIES:
                raise refusal(error, "watch", resource.plural, namespace) from None
            await pause_after(broken - 1)


async def together(
    sources: Mapping[str, AsyncIterator[Change]],
) -> AsyncIterator[tuple[str, str, Object]]:
    """The changes of all sources as they come, each with its source's name. Raises Failure."""
    queue: asyncio.Queue[tuple[str, str, Object] | Exception] = asyncio.Queue()

    async def pass_on(name: str, source: AsyncIterator[Change]) -> None:
        try:
            async for kind, item in source:
                queue.put_nowait((name, kind, item))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pass_on(*source)) for source in sources.items()]
    try:
        while True:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def differences(seen: dict[str, Object], items: list[Object]) -> list[Change]:
    """What a list tells that was not known; `seen` (by UID) is brought up to date."""
    there = {item["metadata"]["uid"]: item for item in items}
    found = [("DELETED", item) for uid, item in seen.items() if uid not in there]
    for uid, item in there.items():
        before = seen.get(uid)
        if before is None:
            found.append(("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            found.append(("MODIFIED", item))
    seen.clear()
    seen.update(there)
    return found


def _note(seen: dict[str, Object], kind: str, item: Object) -> None:
    if kind == "DELETED":
        seen.pop(item["metadata"]["uid"], None)
    else:
        seen[item["metadata"]["uid"]] = item
