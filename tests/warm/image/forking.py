"""Asks a process that has imported everything for a fork of it, and passes for that fork.

    forking.py SOCKET MODULE WORDS…

The fork has this process's files, variables and working directory. It gets the signals that this
process gets, dies with it, and its exit code is this one's. Standard library only: to start, it
takes a hundredth of what the imports take.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

FORKED_FROM = "RLHF_TESTS_FORKED_FROM"
"""The variable with the socket of the process that forks."""


def asked_of(
    server: socket.socket,
    module: str,
    words: Sequence[str],
    directory: str,
    environ: Mapping[str, str],
    files: Sequence[int],
) -> None:
    """Send the order; `files` become standard input, output and error."""
    order = {"module": module, "words": list(words), "directory": directory, "env": dict(environ)}
    line = json.dumps(order).encode() + b"\n"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    sent = server.sendmsg([line], rights)
    server.sendall(line[sent:])


def recv_line(connection: socket.socket) -> str:
    """A line of text. Raises EOFError where the other side has gone."""
    text = b""
    while not text.endswith(b"\n"):
        if not (more := connection.recv(1)):
            raise EOFError("the process that forks has gone")
        text += more
    return text.decode()


def become(address: str, module: str, words: Sequence[str]) -> int:
    """Run a module in a fork to its end; its exit code, negative for a signal."""
    passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    asked_of(server, module, words, os.getcwd(), os.environ, (0, 1, 2))
    fork = json.loads(recv_line(server))
    for number in passed_on:
        signal.signal(number, lambda number, frame: os.kill(fork, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    os.close(1)  # the fork's alone, so that a reader sees its end
    code: int = json.loads(recv_line(server))
    return code


def main(address: str, module: str, words: Sequence[str]) -> None:
    """End as the fork has ended."""
    code = become(address, module, words)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
