"""Certificates for tests, by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rlhf_operator.tls import TLSFiles


def a_certificate(folder: Path) -> TLSFiles:
    """A self-signed one for localhost."""
    files = TLSFiles.of(folder, "localhost")
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    paths = ["-keyout", str(files.key), "-out", str(files.certificate)]
    subprocess.run(["openssl", *options.split(), *names, *paths], check=True, capture_output=True)
    files.authority.write_bytes(files.certificate.read_bytes())
    return files
