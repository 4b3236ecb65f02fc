"""What a shell may complete, and the scripts that ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from cluster_jobs import manifest, wait_until


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_parse(shell: str, tmp_path: Path) -> None:
    from rlhf_cli.commands.completion import SCRIPTS

    assert "rlhfctl __complete" in SCRIPTS[shell]
    if shell == "bash":
        file = tmp_path / "completion"
        file.write_text(SCRIPTS[shell])
        subprocess.run(["bash", "-n", str(file)], check=True)


def test_words_that_may_follow() -> None:
    from rlhf_cli.completing import candidates

    assert [line.split("\t")[0] for line in candidates(["su"])] == ["submit", "suspend"]
    assert candidates(["validate", ""]) == [":files"]
    assert candidates(["completion", "z"]) == ["zsh"]
    flags = [line.split("\t")[0] for line in candidates(["list", "--out"])]
    assert flags == ["--output"]
    assert "json" in candidates(["list", "-o", ""])
    assert candidates(["nonsense", ""]) == []
    assert [line.split("\t")[0] for line in candidates(["-n", "research", "su"])][1:] == ["suspend"]
    assert candidates(["-n", ""]) == []
    flags = candidates(["-n", "research", "list", "--out"])
    assert [line.split("\t")[0] for line in flags] == ["--output"]


def test_bash_completes_the_command_by_the_script(tmp_path: Path) -> None:
    from rlhf_cli.commands.completion import SCRIPTS

    program = tmp_path / "rlhfctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlhf_cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(SCRIPTS["bash"])
    asked = f"""
        PATH={tmp_path}:$PATH; source {tmp_path}/script
        COMP_WORDS=(rlhfctl appr); COMP_CWORD=1; _rlhfctl; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "approve"


def test_kubectl_completes_the_plug_in(
    installed: ControlPlane, module_namespace: str, tmp_path: Path
) -> None:
    """kubectl asks the program of that name itself."""
    programs = Path(sys.executable).parent
    (tmp_path / "rows.yaml").touch()

    def completed(*words: str) -> list[str]:
        done = subprocess.run(
            [str(installed.binaries / "kubectl"), "__complete", "rlhf", *words],
            env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": os.environ["HOME"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    assert completed("des") == ["describe\ttell all about a job, and what to do next", ":4"]
    assert completed("validate", "") == [":0"]
    place = ["--kubeconfig", str(installed.kubeconfig), "-n", module_namespace]
    installed.client.create(manifest(module_namespace, "assistant"), module_namespace)
    # Names are waited for two seconds, in which a machine with other work may not get that far.
    wait_until(lambda: completed("describe", *place, "ass") == ["assistant", ":4"])
