"""TLS for what the operator serves, from files that somebody renews while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

CHECK_SECONDS: Final = 60.0
log = logging.getLogger(__name__)


class TLSFiles(NamedTuple):
    """As a Secret of type kubernetes.io/tls is mounted."""

    certificate: Path
    key: Path
    authority: Path  # ca.crt, by which clients know the server
    name: str  # DNS name in the certificate

    @classmethod
    def of(cls, folder: Path, name: str) -> TLSFiles:
        """Those of a Secret that is mounted as a folder."""
        return cls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", name)


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """For serving. Raises OSError (also ssl.SSLError) where the files do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    return context


def client_context(files: TLSFiles) -> ssl.SSLContext:
    """For speaking to another replica."""
    return ssl.create_default_context(cafile=str(files.authority))


async def keep_fresh(context: ssl.SSLContext, files: TLSFiles) -> None:
    """Takes up a renewed certificate for new connections; runs until it is cancelled."""
    await on_renewal(
        files.certificate, lambda: context.load_cert_chain(files.certificate, files.key)
    )


async def on_renewal(file: Path, take_up: Callable[[], None]) -> None:
    """Calls `take_up` whenever the file has changed, again where it raises OSError (also
    ssl.SSLError); runs until it is cancelled. The first time in any case: between the caller's own
    look at the file and this one it may have been renewed, or be gone for a moment."""
    seen: bytes | None = None
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            found = file.read_bytes()
            if found != seen:
                take_up()
                seen = found
        except OSError as error:  # half-written, or gone for a moment
            log.warning("%s cannot be renewed: %s", file, error)
