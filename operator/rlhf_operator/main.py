"""The operator process: from its settings to its end at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence

from rlhf_operator.replica import Replica
from rlhf_operator.settings import Settings, parse
from rlhf_operator.watches import Restored

log = logging.getLogger(__name__)


def main(words: Sequence[str]) -> int:
    """The exit code."""
    settings = parse(words)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s %(message)s"
    )
    for noisy in ("kopf", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    # It says that it ignores signals, which are handled here.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    code = 0
    try:
        asyncio.run(_until_signalled(settings))
    except* OSError as failed:  # a port that is taken, a certificate that is not there
        log.error("The operator cannot run: %s", _first(failed))
        code = 1
    except* Restored as restored:
        said = "etcd was restored from a backup (%s): this process ends, and a new one looks anew."
        log.error(said, _first(restored))
        code = 1
    return code


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _until_signalled(settings: Settings) -> None:
    running = asyncio.create_task(Replica(settings).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
