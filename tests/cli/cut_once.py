"""A wire between rlhfctl and an API server that breaks once, after so many bytes."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml

BLOCK = 1 << 16


class CutOnce:
    """Passes TLS on as it is, both ways; `kubeconfig` leads through it."""

    def __init__(self, kubeconfig: Path, folder: Path, after: int) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        (entry,) = config["clusters"]
        server = urlsplit(entry["cluster"]["server"])
        self._server = (server.hostname or "", server.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        entry["cluster"]["server"] = f"https://127.0.0.1:{port}"
        self.kubeconfig = folder / "through-a-wire.yaml"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.has_cut = False
        self.passed = 0  # bytes that came from the server
        self._after = after

    def __enter__(self) -> CutOnce:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while block := source.recv(BLOCK):
                sink.sendall(block)
                self.passed += len(block) * counts
                if self.passed > self._after and not self.has_cut:
                    self.has_cut = True
                    break
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
