"""The process that forks: python -m warm.server SOCKET MODULES…

It imports the modules and then waits for orders, each on a connection of its own, on which it
answers with the fork's number and, in the end, its exit code. Where the connection ends first, the
fork is killed. It ends with its standard input.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from typing import Any, NamedTuple

LONGEST_ORDER = 1 << 20
"""Bytes; an environment is the most of it."""


class Order(NamedTuple):
    """What a fork is to be."""

    module: str
    words: list[str]
    directory: str
    env: dict[str, str]
    files: list[int]


class Server:
    """Forks that run, by their connections."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._wake = socket.socketpair()
        for one in self._wake:
            one.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
        self._forks: dict[int, socket.socket] = {}

    def serve(self) -> Order | None:
        """Returns in a fork what that one is to be; None where it is all over."""
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, self._wake[0], sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is sys.stdin:
                        self._kill_all()
                        return None
                    if key.fileobj is self._listener:
                        if order := self._fork(selector):
                            return order
                    elif key.fileobj is self._wake[0]:
                        self._wake[0].recv(4096)
                        self._reap(selector)
                    else:
                        _kill(key.data)  # whoever asked for it has gone
                        selector.unregister(key.fileobj)

    def _fork(self, selector: selectors.BaseSelector) -> Order | None:
        """Forks; None in this process."""
        connection, _ = self._listener.accept()
        if (order := _received(connection)) is None:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._let_go(connection)
            return order
        for file in order.files:
            os.close(file)
        self._forks[pid] = connection
        selector.register(connection, selectors.EVENT_READ, pid)
        _tell(connection, pid)
        return None

    def _reap(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._forks.pop(ended[0])
                with contextlib.suppress(KeyError):
                    selector.unregister(connection)
                _tell(connection, os.waitstatus_to_exitcode(ended[1]))
                connection.close()

    def _kill_all(self) -> None:
        for pid in self._forks:
            _kill(pid)

    def _let_go(self, connection: socket.socket) -> None:
        """In a fork: of all that is this process's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (connection, self._listener, *self._wake, *self._forks.values()):
            one.close()


def _received(connection: socket.socket) -> Order | None:
    """None from one that went before it had asked."""
    text, files = b"", array.array("i")
    while not text.endswith(b"\n"):
        part, rights, _, _ = connection.recvmsg(LONGEST_ORDER, socket.CMSG_SPACE(3 * 4))
        if not part:
            return None
        text += part
        for _, _, data in rights:
            files.frombytes(data)
    return Order(**json.loads(text), files=list(files))


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.sendall(b"%d\n" % number)


def _kill(pid: int) -> None:
    """With all that it has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _become(order: Order) -> None:
    """Takes the files, the variables and the place of whoever asked."""
    os.setsid()
    for standard, file in enumerate(order.files):
        os.dup2(file, standard)
        os.close(file)
    _open_standard_streams(unbuffered=bool(order.env.get("PYTHONUNBUFFERED")))
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.env)
    given = order.env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [order.directory, *(p for p in given if p and p not in sys.path)]
    sys.argv = [order.module, *order.words]
    _read_variables_again()
    gc.enable()


def _open_standard_streams(unbuffered: bool) -> None:
    """As Python does when it starts: a stream knows whether its file can seek or is a terminal."""
    read = BufferedReader(FileIO(0, closefd=False))
    written, told = (BufferedWriter(FileIO(file, "w", closefd=False)) for file in (1, 2))
    by_line = unbuffered or os.isatty(1)
    sys.stdin = sys.__stdin__ = TextIOWrapper(read, "utf-8")
    sys.stdout = sys.__stdout__ = TextIOWrapper(
        written, "utf-8", line_buffering=by_line, write_through=unbuffered
    )
    sys.stderr = sys.__stderr__ = TextIOWrapper(
        told, "utf-8", errors="backslashreplace", line_buffering=True
    )


def _read_variables_again() -> None:
    """Those that a library has read when it was imported."""
    for module in list(sys.modules.values()):
        known: dict[str, Any] = getattr(module, "__dict__", {})
        if "KUBE_CONFIG_DEFAULT_LOCATION" in known:
            default = "~/.kube/config"
            known["KUBE_CONFIG_DEFAULT_LOCATION"] = os.environ.get("KUBECONFIG", default)


def main(address: str, modules: Sequence[str]) -> None:
    """Until standard input ends."""
    for name in modules:
        import_module(name)
    gc.disable()
    gc.freeze()  # a collection in a fork would copy each page that it looks at
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, for the tests
    server = Server(address)
    print(end="\n", flush=True)
    if order := server.serve():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(order)
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
