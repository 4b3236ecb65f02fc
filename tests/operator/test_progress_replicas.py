"""The progress server over real connections: one replica, two, and one that leads no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from certificates import a_certificate
from progress_tokens import UID, a_token, the_review
from rlhf_operator import progress_forward, progress_server, tls
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Progress
from rlhf_operator.progress_auth import Reporter
from rlhf_operator.progress_forward import Forwarder, KnownLeader, address_in, address_of
from rlhf_operator.progress_server import ProgressServer
from rlhf_operator.replica import Replica as Operator
from rlhf_operator.settings import parse
from rlhf_operator.tls import TLSFiles, keep_fresh, server_context

PATH = "/namespaces/default/rlhfjobs/tiny/ppo/3"
REPORT: dict[str, Any] = {"progressPercentage": 40, "metrics": [{"name": "kl", "value": "0.25"}]}
POD = "tiny-ppo-3-0-x7k2p"
PATIENCE = 30.0
"""Seconds."""


class Replica:
    """A progress server with an API server that answers at once and counts."""

    def __init__(self, leader: KnownLeader = KnownLeader(is_here=True)) -> None:  # noqa: B008
        self.leader = leader
        self.taken: list[tuple[JobKey, str, int, Progress]] = []
        self.reviews, self.answers = 0, list[int]()
        self.pods = {("default", POD, UID): Reporter("default", "tiny", "ppo", 3)}
        self.failure: Exception | None = None
        self.reviewed: str | None = None
        self.server = ProgressServer(
            create_review=self._review,
            works_on=lambda pod, reporter: self.pods.get(pod) == reporter,
            take=lambda *report: self.taken.append(report),
            leader=lambda: self.leader,
            count=self.answers.append,
        )
        self.port = 0

    async def _review(self, body: dict[str, Any]) -> dict[str, Any]:
        self.reviews += 1
        if self.failure:
            raise self.failure
        return the_review(self.reviewed or body["spec"]["token"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def percents(self) -> list[float | None]:
        return [progress.percent for *_, progress in self.taken]


def serve(
    test: Callable[..., Awaitable[None]], *replicas: Replica, tls: TLSFiles | None = None
) -> None:
    """Runs a test while the replicas serve."""

    async def main() -> None:
        try:
            for replica in replicas:
                replica.port = await replica.server.start("127.0.0.1", 0, tls)
            await test(*replicas)
        finally:
            for replica in replicas:
                await replica.server.close()

    asyncio.run(main())


async def post(
    replica: Replica,
    token: str | None = None,
    path: str = PATH,
    status: Any = REPORT,
    **options: Any,
) -> int:
    headers = {"Authorization": f"Bearer {token or a_token()}"} | options.pop("headers", {})
    options = {"json": {"trainerStatus": status}} | options if "data" not in options else options
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"http://{replica.address}{path}", **options) as answer,
    ):
        return answer.status


def test_a_pod_reports_on_its_own_attempt() -> None:
    async def test(replica: Replica) -> None:
        assert await post(replica) == 200
        progress = Progress(40.0, None, {"kl": 0.25})
        assert replica.taken == [(JobKey("default", "tiny"), "ppo", 3, progress)]
        assert replica.answers == [200]

    serve(test, Replica())


REFUSED = [
    ("no token", {"headers": {"Authorization": ""}}, 401, 0),
    ("another scheme", {"headers": {"Authorization": "Basic YTpi"}}, 401, 0),
    ("garbage", {"token": "garbage"}, 401, 0),
    ("another audience", {"token": a_token(aud=["kubernetes"])}, 401, 0),
    ("another namespace's pod", {"token": a_token("other")}, 403, 0),
    ("another pod", {"token": a_token(pod="tiny-ppo-3-1-aaaaa")}, 403, 0),
    ("an earlier pod of that name", {"token": a_token(uid="gone")}, 403, 0),
    ("another job", {"path": PATH.replace("tiny", "big")}, 403, 0),
    ("another stage", {"path": PATH.replace("ppo", "sft")}, 403, 0),
    ("another attempt", {"path": PATH.replace("/3", "/2")}, 403, 0),
    ("no attempt", {"path": PATH.replace("/3", "/x")}, 404, 0),
    ("a forged token", {"token": a_token(signature="forged")}, 401, 1),
    ("an expired token", {"token": a_token(signature="expired", exp=1)}, 401, 1),
    ("no report", {"status": 3}, 400, 1),
    ("no JSON", {"data": b"{"}, 400, 1),
    ("a huge body", {"data": b" " * 70_000}, 413, 1),
]


@pytest.mark.parametrize(
    ("request_", "status", "reviews"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_all_else_is_refused_and_nothing_made_up_reaches_the_api_server(
    request_: dict[str, Any], status: int, reviews: int
) -> None:
    async def test(replica: Replica) -> None:
        assert await post(replica, **request_) == status
        assert (replica.taken, replica.reviews) == ([], reviews)

    serve(test, Replica())


def test_a_token_is_reviewed_once() -> None:
    async def test(replica: Replica) -> None:
        token = a_token()
        assert [await post(replica, token) for _ in range(3)] == [200] * 3
        assert replica.reviews == 1

    serve(test, Replica())


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of what a pod may spend."""
    monkeypatch.setattr(progress_server, "time", SimpleNamespace(monotonic=lambda: 1000.0))


@pytest.mark.usefixtures("no_time_passes")
def test_forged_tokens_of_a_pod_cost_a_few_reviews_and_leave_its_own_reports_alone() -> None:
    async def test(replica: Replica) -> None:
        own = a_token()
        assert await post(replica, own) == 200
        forged = [a_token(signature="forged", jti=str(number)) for number in range(20)]
        answers = [await post(replica, token) for token in forged]
        assert set(answers) == {401, 429}
        assert replica.reviews <= 5
        assert await post(replica, own) == 200

    serve(test, Replica())


@pytest.mark.usefixtures("no_time_passes")
def test_a_pod_that_reports_all_the_time_is_slowed_down() -> None:
    async def test(replica: Replica) -> None:
        token = a_token()
        answers = [await post(replica, token) for _ in range(12)]
        assert answers == [200] * 5 + [429] * 7
        assert len(replica.taken) == 5

    serve(test, Replica())


def test_a_review_that_vouches_for_another_pod_is_none() -> None:
    async def test(replica: Replica) -> None:
        replica.reviewed = a_token(pod="tiny-ppo-3-1-aaaaa")
        assert await post(replica) == 401
        assert replica.taken == []

    serve(test, Replica())


def test_an_api_server_that_fails_is_asked_again_at_the_next_report() -> None:
    async def test(replica: Replica) -> None:
        replica.failure = ConnectionError("refused")
        assert await post(replica) == 503
        replica.failure = None
        assert await post(replica) == 200

    serve(test, Replica())


def test_a_pod_that_is_gone_reports_no_more_although_its_token_still_holds() -> None:
    async def test(replica: Replica) -> None:
        token = a_token()
        assert await post(replica, token) == 200
        replica.pods.clear()
        assert await post(replica, token) == 403

    serve(test, Replica())


def test_a_replica_that_does_not_lead_passes_reports_and_refusals_on() -> None:
    async def test(first: Replica, second: Replica) -> None:
        second.leader = KnownLeader(is_here=False, address=first.address)
        assert await post(second) == 200
        assert first.percents() == [40.0]
        assert await post(second, token=a_token(signature="forged")) == 401
        assert await post(second, path=PATH.replace("tiny", "big")) == 403
        assert (second.taken, second.reviews) == ([], 0)

    serve(test, Replica(), Replica())


def test_reports_arrive_while_leadership_changes_hands() -> None:
    async def test(first: Replica, second: Replica) -> None:
        second.leader = KnownLeader(is_here=False, address=first.address)
        assert await post(second, status={"progressPercentage": 1}) == 200
        first.leader = KnownLeader(is_here=False)  # it lost the lease, and nobody has it yet
        assert await post(first, status={"progressPercentage": 2}) == 503
        assert await post(second, status={"progressPercentage": 2}) == 503
        second.leader, first.leader = KnownLeader(True), KnownLeader(False, second.address)
        assert await post(first, status={"progressPercentage": 3}) == 200
        assert (first.percents(), second.percents()) == ([1.0], [3.0])

    serve(test, Replica(), Replica())


def test_two_replicas_that_take_each_other_for_the_leader_do_not_loop() -> None:
    async def test(first: Replica, second: Replica) -> None:
        first.leader = KnownLeader(False, second.address)
        second.leader = KnownLeader(False, first.address)
        assert await post(first) == 503
        assert (first.answers, second.answers) == ([503], [503])

    serve(test, Replica(), Replica())


def test_a_leader_that_hangs_or_is_gone_costs_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlhf_operator.progress_forward.FORWARD_SECONDS", 0.3)

    async def test(replica: Replica) -> None:
        silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        replica.leader = KnownLeader(False, f"127.0.0.1:{port}")
        begin = time.monotonic()
        assert await post(replica) == 503
        assert 0.2 < time.monotonic() - begin < PATIENCE
        silent.close()
        assert await post(replica) == 503

    serve(test, Replica())


def test_a_body_that_does_not_come_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_operator.progress_server.READ_SECONDS", 0.2)

    async def test(replica: Replica) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {a_token()}\r\n"
        writer.write(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        answer = await asyncio.wait_for(reader.readline(), PATIENCE)
        assert b" 408 " in answer
        writer.close()

    serve(test, Replica())


@pytest.mark.parametrize(
    ("identity", "address"),
    [
        ("rlhf-operator-7d9f-abc_10.0.0.7:8082", "10.0.0.7:8082"),
        ("rlhf-operator-7d9f-abc_[fd00::7]:8082", "[fd00::7]:8082"),
        ("rlhf-operator-7d9f-abc", None),
        ("x_evil.example.com:80/", None),
        ("", None),
    ],
)
def test_the_leaders_address_is_read_from_the_lease(identity: str, address: str | None) -> None:
    assert address_in(identity) == address


@pytest.mark.parametrize("ip", ["10.0.0.7", "fd00::7"])
def test_a_replica_writes_its_address_as_others_read_it(ip: str) -> None:
    address = address_of(ip, 8082)
    assert urlsplit(f"http://{address}").hostname == ip
    assert address_in(f"rlhf-operator-7d9f-abc_5c02e6_{address}") == address


def test_transformers_own_callback_reports_over_http_and_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integrations = pytest.importorskip("transformers.integrations.integration_utils")
    files = a_certificate(tmp_path)
    (tmp_path / "token").write_text(a_token())
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setenv("no_proxy", "*")

    async def send(address: str) -> None:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"{address}{PATH}")
        callback = integrations.KubeflowCallback()
        assert await asyncio.to_thread(
            callback._update_status, 12, 34, {"loss": 0.5, "total_steps": 80}, True
        )

    async def plain(replica: Replica) -> None:
        await send(f"http://{replica.address}")
        assert replica.taken[0][3] == Progress(12.0, 34.0, {"loss": 0.5, "total_steps": 80.0})

    async def secure(replica: Replica, follower: Replica) -> None:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(files.authority))
        follower.leader = KnownLeader(False, replica.address)
        await send(f"https://localhost:{replica.port}")
        await send(f"https://localhost:{follower.port}")
        assert replica.percents() == [12.0, 12.0]

    serve(plain, Replica())
    serve(secure, Replica(), Replica(), tls=files)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_trainers_are_given_the_authority_of_a_server_with_https(
    scheme: str, tmp_path: Path
) -> None:
    files = a_certificate(tmp_path)
    words = ["--progress-url", f"{scheme}://here", "--tls-directory", str(tmp_path)]
    operator = Operator(parse(["--all-namespaces", *words], {}))
    authority = files.authority.read_text() if scheme == "https" else None
    assert operator._platform({}).progress_authority == authority


def test_a_renewed_authority_is_taken_up_by_whoever_passes_reports_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.05)
    files = a_certificate(tmp_path)

    async def test(leader: Replica, follower: Replica) -> None:
        follower.leader = KnownLeader(False, leader.address)
        connector = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"https://{follower.address}{PATH}"
            headers = {"Authorization": f"Bearer {a_token()}"}
            body = {"trainerStatus": REPORT}

            async def status() -> int:
                async with session.post(url, json=body, headers=headers) as answer:
                    return answer.status

            assert await status() == 200
            files.authority.write_text("half-written")
            await until_told(caplog, f"{files.authority} cannot be renewed")
            assert await status() == 200
            a_certificate(tmp_path)
            await leader.server.close()
            leader.port = await leader.server.start("127.0.0.1", 0, files)
            follower.leader = KnownLeader(False, leader.address)
            async with asyncio.timeout(PATIENCE):
                while await status() != 200:
                    await asyncio.sleep(0.02)

    serve(test, Replica(), Replica(), tls=files)


def test_a_renewed_certificate_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.05)

    async def main() -> None:
        files = a_certificate(tmp_path)
        context = server_context(files)
        server = await asyncio.start_server(
            lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context
        )
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(keep_fresh(context, files))
        old = await served_certificate(port)
        files.certificate.write_text("half-written")
        await until_told(caplog, f"{files.certificate} cannot be renewed")
        assert await served_certificate(port) == old
        a_certificate(tmp_path)
        async with asyncio.timeout(PATIENCE):
            while await served_certificate(port) == old:
                await asyncio.sleep(0.02)
        task.cancel()
        server.close()

    asyncio.run(main())


def test_a_certificate_that_is_renewed_while_it_is_first_read_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CHECK_SECONDS", 0.0)

    async def main() -> None:
        taken = asyncio.Event()
        gone = tmp_path / "tls.crt"  # what was read is not there any more, and its follower not yet
        task = asyncio.create_task(tls.on_renewal(gone, taken.set))
        await asyncio.sleep(0)
        gone.write_text("another")
        async with asyncio.timeout(PATIENCE):
            await taken.wait()
        task.cancel()

    asyncio.run(main())


async def until_told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while text not in caplog.text:
            await asyncio.sleep(0.02)


async def served_certificate(port: int) -> str:
    import ssl

    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))


def test_reports_do_not_pile_up_before_a_leader_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_forward, "CONCURRENT_FORWARDS", 1)
    monkeypatch.setattr(progress_forward, "FORWARD_SECONDS", 0.3)

    async def main() -> None:
        hung = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        host, port = hung.sockets[0].getsockname()
        forwarder = Forwarder(None)
        began = time.monotonic()
        sent = [forwarder.send(f"{host}:{port}", PATH, a_token(), b"{}") for _ in range(200)]
        assert await asyncio.gather(*sent) == [None] * 200
        assert time.monotonic() - began < PATIENCE  # and not one after the other
        await forwarder.close()
        hung.close()

    asyncio.run(main())


def test_a_report_that_outlives_the_term_in_which_it_came_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica = Replica()

    async def lose_the_lease(body: dict[str, Any]) -> dict[str, Any]:
        replica.leader = KnownLeader(is_here=False)
        return the_review(body["spec"]["token"])

    monkeypatch.setattr(replica.server._verifier, "_create_review", lose_the_lease)

    async def test(replica: Replica) -> None:
        assert await post(replica) == 503
        assert replica.taken == []

    serve(test, replica)
