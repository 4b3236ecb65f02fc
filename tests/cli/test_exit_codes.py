"""Each exit code of the table, got from a command that a user may give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from a_run_here import RunHere
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster_jobs import wait_until
from rlhf_cli.failures import EXIT_CODES
from test_local import IMAGE, Bench


class Desk(RunHere):
    """A manifest whose trainers do as they are told; a cluster that lets nobody do anything."""

    def __init__(self, bench: Bench, login: Path) -> None:
        path = os.pathsep.join(filter(None, [str(IMAGE), os.environ.get("PYTHONPATH", "")]))
        fake = {"PYTHONPATH": path, "FAKE_BEHAVIOUR": str(bench.behaviour)}
        super().__init__(bench.path, {**os.environ, **fake})
        self.bench, self.login = bench, login

    def train(self, code: int = 0, seconds: int = 0, **stage: object) -> subprocess.Popen[str]:
        """SFT alone, which ends with a code after some seconds, at each attempt."""
        sft = {"retry": {"maxFaults": 0}, **stage}
        manifest = self.bench.manifest(sft=sft)
        del manifest["spec"]["stages"]["ppo"], manifest["spec"]["stages"]["dpo"]
        del manifest["spec"]["stages"]["reward"]
        if stage:
            manifest["spec"]["stages"]["dpo"] = self.bench.manifest()["spec"]["stages"]["dpo"]
        (self.folder / "job.yaml").write_text(json.dumps(manifest))
        self.bench.behave({"sft": {"exit": code, "sleep": seconds}})
        return self.start("run", "job.yaml", "--dir", "run")

    def training(self) -> subprocess.Popen[str]:
        """For ten minutes, and under way."""
        process = self.train(seconds=600)
        wait_until(lambda: self.stage("sft").get("phase") == "Running")
        return process


def trainer_ends(code: int) -> Callable[[Desk], None]:
    return lambda desk: ends(desk, code, desk.train(code))


def ends(desk: Desk, code: int, process: subprocess.Popen[str]) -> None:
    desk.finish(process, code)


def a_person_is_waited_for(desk: Desk) -> None:
    said = desk.finish(desk.train(gate={"approval": True}), 1)
    assert f"rlhfctl approve sft --dir {desk.directory}" in said


def nobody_answers(desk: Desk) -> None:
    assert "no kubeconfig" in desk.rlhfctl("list", "--kubeconfig", "none", code=69)


def rlhfctl_is_wrong(desk: Desk) -> None:
    """Its manifest's schema cannot be made: nothing foresees that."""
    wrong = "import sys, rlhf_api.schema as s; s.job_schema = None; from rlhf_cli.main import main"
    words = [sys.executable, "-c", f"{wrong}; sys.exit(main(['schema']))"]
    told = {"RLHF_TRACEBACK": "1"}
    brief, whole = (
        subprocess.run(
            words, env=os.environ | more, capture_output=True, text=True, timeout=PATIENCE
        )
        for more in ({}, told)
    )
    assert (brief.returncode, whole.returncode) == (70, 70)
    assert "Traceback" not in brief.stderr
    assert "a mistake of rlhfctl itself: TypeError: 'NoneType' object is not" in brief.stderr
    assert "RLHF_TRACEBACK=1" in brief.stderr
    assert "Traceback" in whole.stderr


def the_disk_is_full(desk: Desk) -> None:
    command = f"exec {sys.executable} -m rlhf_cli schema > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (
        74,
        "rlhfctl: input or output: No space left on device\n",
    )


def another_run_works_there(desk: Desk) -> None:
    process = desk.training()
    assert "follow it with rlhfctl watch --dir run" in desk.here("resume", code=75)
    desk.here("cancel", "--now")
    process.communicate()


def not_allowed(desk: Desk) -> None:
    said = desk.rlhfctl("list", "--kubeconfig", str(desk.login), code=77)
    assert "kubectl auth can-i list rlhfjobs" in said


def it_takes_too_long(desk: Desk) -> None:
    process = desk.training()
    assert "within 1 s" in desk.here("watch", "--timeout", "1", code=124)
    desk.here("cancel", "--now")
    process.communicate()


def stopped_by(number: signal.Signals, code: int) -> Callable[[Desk], None]:
    def stop(desk: Desk) -> None:
        process = desk.training()
        process.send_signal(number)
        assert "To go on where it stopped" in desk.finish(process, code)

    return stop


CASES: Final[dict[int, Callable[[Desk], None]]] = {
    0: trainer_ends(0),
    1: a_person_is_waited_for,
    64: trainer_ends(64),
    65: trainer_ends(65),
    66: trainer_ends(66),
    69: nobody_answers,
    70: rlhfctl_is_wrong,
    74: the_disk_is_full,
    75: another_run_works_there,
    77: not_allowed,
    124: it_takes_too_long,
    130: stopped_by(signal.SIGINT, 130),
    143: stopped_by(signal.SIGTERM, 143),
}


def test_every_code_has_its_case() -> None:
    assert list(CASES) == list(EXIT_CODES)


@pytest.mark.parametrize("code", CASES)
def test_a_command_ends_with(
    code: int, installed: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    installed.kubectl("create", "serviceaccount", "stranger", "-n", namespace)
    CASES[code](Desk(Bench(tmp_path), installed.kubeconfig_for("stranger", namespace)))
