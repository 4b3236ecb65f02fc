"""A watch goes on, whatever the API server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from rlhf_operator import watches
from rlhf_operator.api import Api, ApiError, Resource
from rlhf_operator.cache import Cache
from rlhf_operator.names import JobKey
from rlhf_operator.watches import PODS, Restored, Watch, refresh_all

KEY = JobKey("team", "tiny")
Object = dict[str, Any]
Step = tuple[str, Object] | ApiError


def a_pod(version: int, name: str = "p") -> Object:
    meta = {
        "name": name,
        "namespace": "team",
        "uid": name,
        "resourceVersion": str(version),
        "labels": {"rlhf.dev/job": "tiny"},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


def bookmark(version: int) -> tuple[str, Object]:
    return "BOOKMARK", {"metadata": {"resourceVersion": str(version)}}


class Script:
    """Answers lists and watches one after the other, and then falls silent."""

    def __init__(
        self, lists: list[tuple[list[Object], int] | ApiError], streams: list[list[Step]]
    ) -> None:
        self.lists, self.streams = lists, streams
        self.since: list[int] = []

    async def list(self, *_: Any, **__: Any) -> tuple[list[Object], int]:
        answer = self.lists.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def watch(self, _: Any, __: Any, since: int, **___: Any) -> AsyncIterator[Any]:
        self.since.append(since)
        if not self.streams:
            await asyncio.Event().wait()
        for step in self.streams.pop(0):
            if isinstance(step, ApiError):
                raise step
            yield step


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(failures: int) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(watches, "pause_after", at_once)


def run(script: Script, until: Callable[[Cache], bool]) -> Cache:
    async def main() -> Cache:
        cache = Cache()
        task = asyncio.create_task(Watch(script, cache, PODS, "team").run())  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            while not until(cache):
                await asyncio.sleep(0.01)
        task.cancel()
        return cache

    return asyncio.run(main())


class Forgetful(Api):
    """Keeps no list for longer than its first page."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

    async def request(self, _: str, __: str, query: Any = None, *___: Any, **____: Any) -> Any:
        self.asked.append(dict(query))
        if "continue" in query:
            raise ApiError(410, "Expired", "The provided continue parameter is too old")
        pages = {"continue": "more"} if "limit" in query else {}
        items = [a_pod(3)] if pages else [a_pod(3), a_pod(4, "q")]
        return {"items": items, "metadata": {"resourceVersion": "5", **pages}}


def test_a_list_of_which_the_server_forgets_the_rest_is_asked_for_whole() -> None:
    """Where each page takes seconds, etcd is compacted before the last one, each time anew."""
    api = Forgetful()
    items, version = asyncio.run(api.list(PODS, "team"))
    assert ([item["metadata"]["name"] for item in items], version) == (["p", "q"], 5)
    assert len(api.asked) == 3


def names(cache: Cache) -> set[str]:
    return {item["metadata"]["name"] for item in cache.children(KEY, "Pod")}


def test_it_lists_and_then_watches_from_there() -> None:
    script = Script([([a_pod(3)], 5)], [[("ADDED", a_pod(6, "q"))]])
    run(script, lambda cache: names(cache) == {"p", "q"} and len(script.since) == 2)
    assert script.since == [5, 6]  # a watch that ended goes on where it was


class Overtaken(Script):
    """Answers its last list only once the watch, which goes on beside it, has told of more."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.asked, self.told = asyncio.Event(), asyncio.Event()

    async def list(self, *_: Any, **__: Any) -> tuple[list[Object], int]:
        answer = await super().list()
        if not self.lists:
            self.asked.set()
            await self.told.wait()
        return answer

    async def watch(self, *where: Any, **__: Any) -> AsyncIterator[Any]:
        await self.asked.wait()
        async for step in super().watch(*where):
            yield step
            self.told.set()


def test_a_list_that_a_watch_overtakes_tells_of_no_backup() -> None:
    """Whoever begins to lead lists what it watches already: where much was written at that moment,
    the process ended."""

    async def main() -> tuple[set[str], int]:
        cache, script = Cache(), Overtaken([([], 5), ([a_pod(6)], 7)], [[("ADDED", a_pod(8, "q"))]])
        watch = Watch(script, cache, PODS, "team")  # type: ignore[arg-type]
        running = asyncio.create_task(watch.run())
        while script.lists == [([], 5), ([a_pod(6)], 7)]:
            await asyncio.sleep(0)
        version = await asyncio.wait_for(watch.refresh(), 5)
        running.cancel()
        return names(cache), version

    assert asyncio.run(main()) == ({"p", "q"}, 7)


def test_a_bookmark_moves_it_on() -> None:
    script = Script([([], 5)], [[bookmark(40)]])
    run(script, lambda cache: len(script.since) == 2)
    assert script.since == [5, 40]


def test_what_went_while_it_could_not_look_is_gone() -> None:
    script = Script([([a_pod(3)], 5), ([], 90)], [[ApiError(410, "Expired", "too old")]])
    cache = run(script, lambda cache: len(script.since) == 2)
    assert script.since == [5, 90]
    assert names(cache) == set()


@pytest.mark.parametrize("code", [0, 401, 403, 404, 410, 429, 500, 503, 504])
def test_no_error_ends_it(code: int) -> None:
    error = ApiError(code, "Any", "")
    script = Script(
        [error, error, ([a_pod(3)], 5), ([a_pod(3), a_pod(7, "q")], 8)],
        [[error], [("DELETED", a_pod(9))]],
    )
    run(script, lambda cache: names(cache) == {"q"})


def test_an_etcd_that_was_restored_from_a_backup_ends_it() -> None:
    """Its versions begin again below those that are known, which would hide all that happens."""
    script = Script([([a_pod(30)], 35), ([a_pod(40)], 45)], [[bookmark(95)]])
    script.streams.append([ApiError(0, "Unreachable", "")])
    with pytest.raises(Restored, match="pods were at version 95, and are at 45 now"):
        asyncio.run(Watch(script, Cache(), PODS, "team").run())  # type: ignore[arg-type]


def test_so_does_one_whose_versions_go_on_above_all_that_were() -> None:
    """As `etcdutl snapshot restore --bump-revision` makes it: what is older by that hides nothing
    from a list, but from us."""
    script = Script([([a_pod(30)], 95), ([a_pod(20)], 10_000)], [[ApiError(0, "Unreachable", "")]])
    watch = Watch(script, Cache(), PODS, "team")  # type: ignore[arg-type]
    with pytest.raises(Restored, match="Pod p was at version 30, and is at 20 now"):
        asyncio.run(asyncio.wait_for(watch.run(), 60))


def test_a_list_that_is_older_than_a_write_of_ours_ends_nothing() -> None:
    cache = Cache()
    script = Script([([a_pod(30)], 35), ([a_pod(30)], 39)], [[ApiError(0, "Unreachable", "")]])

    async def main() -> None:
        task = asyncio.create_task(Watch(script, cache, PODS, "team").run())  # type: ignore[arg-type]
        cache.put(a_pod(40))
        while script.lists:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    assert version_in(cache) == 40


def version_in(cache: Cache) -> int:
    (item,) = cache.children(KEY, "Pod")
    return int(item["metadata"]["resourceVersion"])


def test_everything_is_seen_before_it_is_fresh() -> None:
    script = Script([ApiError(503, "Any", ""), ApiError(0, "Any", ""), ([a_pod(3)], 5)], [])
    cache = Cache()
    asyncio.run(refresh_all([Watch(script, cache, PODS, "team")]))  # type: ignore[arg-type]
    assert names(cache) == {"p"}


@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_gang_scheduler_s_kind_that_is_not_to_be_seen_holds_nothing_up(code: int) -> None:
    gone = Script([ApiError(code, "Any", "")], [])
    groups = Resource("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups")
    asyncio.run(refresh_all([Watch(gone, Cache(), groups, "team")]))  # type: ignore[arg-type]
    assert gone.lists == []


@pytest.mark.parametrize("code", [403, 404, 500])
def test_pods_that_are_not_to_be_seen_are_waited_for(code: int) -> None:
    script = Script([ApiError(code, "Any", ""), ([a_pod(3)], 5)], [])
    cache = Cache()
    asyncio.run(refresh_all([Watch(script, cache, PODS, "team")]))  # type: ignore[arg-type]
    assert names(cache) == {"p"}
