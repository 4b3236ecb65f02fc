"""SIGTERM before there is anything to save: a pod does not hold its node until it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys

from rlhf_api.run import ExitCode

AS_PROCESS_1 = """
import time
from rlhf_trainer.__main__ import end_at_sigterm
end_at_sigterm()
print("ready", flush=True)
time.sleep(600)
"""


def test_what_is_fetched_or_loaded_as_process_1_ends_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", AS_PROCESS_1], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == ExitCode.TERMINATED
    finally:
        process.kill()
