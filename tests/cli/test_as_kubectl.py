"""Flags and forms that kubectl has, too: the same words give the same on the same job."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import warm
import yaml
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster_jobs import manifest

Object = dict[str, Any]
STATUS: Final[Object] = {
    "phase": "Running",
    "stage": "sft",
    "stages": {"sft": {"phase": "Running", "attempt": 2, "progress": 40}},
    "observedGeneration": 1,
}
CONDITIONS: Final = [
    {
        "type": kind,
        "status": "False",
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }
    for kind, reason in (("Scheduled", "NoPods"), ("Ready", "Unschedulable"))
]
OWN: Final[Object] = {
    "first": {"reward": 2.2, "kl": 1.5e-05, "conditions": CONDITIONS},
    "second": {"reward": -12345678.9, "kl": 3},
}
"""In a table numbers are printed in Go's way; not every job has been looked at."""


class Bench:
    """Two jobs of one namespace on which nobody works, and a kubeconfig with two contexts."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder
        for name in ("first", "second"):
            made = manifest(namespace, name, stages="sft reward ppo")
            made["metadata"]["labels"] = {"team": name}
            plane.client.create(made, namespace)
            plane.client.patch(
                "rlhf.dev/v1alpha1/rlhfjobs",
                name,
                {"status": STATUS | OWN[name]},
                namespace,
                subresource="status",
            )
        config = yaml.safe_load(plane.kubeconfig.read_text())
        (given,) = config["contexts"]
        config["contexts"] = [
            {"name": "here", "context": given["context"] | {"namespace": namespace}},
            {"name": "away", "context": given["context"] | {"namespace": "default"}},
        ]
        config["current-context"] = "away"
        self.kubeconfig = folder / "config"
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def rlhfctl(self, words: str, **environ: str) -> str:
        return self._said(warm.command("rlhf_cli"), words, environ)

    def kubectl(self, words: str, **environ: str) -> str:
        return self._said([str(self.plane.binaries / "kubectl")], words, environ)

    def _said(self, program: list[str], words: str, environ: dict[str, str]) -> str:
        done = subprocess.run(
            [*program, *shlex.split(words)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def bench(
    installed: ControlPlane, module_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    return Bench(installed, module_namespace, tmp_path_factory.mktemp("as-kubectl"))


def as_it_is(text: str) -> str:
    return text


def without_ages(text: str) -> list[str]:
    """Lines of a table; between two commands a second may pass."""
    return [re.sub(r"\b(?:\d+[dhms])+\b *", "AGE ", line).rstrip() for line in text.splitlines()]


def with_numbers(text: str) -> Any:
    """YAML in which 1e-05 is a number, as in YAML 1.2."""
    return numbers(yaml.safe_load(text))


def numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?e-?\d+", value)
    return float(value) if is_number else value


FORMS: Final[dict[str, Callable[[str], Any]]] = {
    "": without_ages,
    "-o wide": without_ages,
    "-o name": as_it_is,
    "-o json": json.loads,
    "-o yaml": with_numbers,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", ["first", "-l team!=nobody"])
def test_each_form_is_kubectl_s(form: str, which: str, bench: Bench) -> None:
    place = f"--kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    mine = bench.rlhfctl(f"get {which} {form} {place}")
    theirs = bench.kubectl(f"get rlhfjobs {which} {form} {place}")
    assert FORMS[form](mine) == FORMS[form](theirs)


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        ("--kubeconfig CONFIG -n NAMESPACE", {}),
        ("--kubeconfig CONFIG --context here", {}),
        ("--kubeconfig=CONFIG --context=here --namespace=NAMESPACE", {}),
        ("--context here", {"KUBECONFIG": "CONFIG"}),
        ("-n NAMESPACE", {"KUBECONFIG": "none:CONFIG"}),
    ],
)
def test_a_cluster_and_a_namespace_are_named_as_for_kubectl(
    flags: str, environ: dict[str, str], bench: Bench
) -> None:
    def filled(text: str) -> str:
        return text.replace("CONFIG", str(bench.kubeconfig)).replace("NAMESPACE", bench.namespace)

    given = {name: filled(value) for name, value in environ.items()}
    mine = bench.rlhfctl(f"get -o name {filled(flags)}", **given)
    assert mine == bench.kubectl(f"get rlhfjobs -o name {filled(flags)}", **given)
    assert mine.split() == ["rlhfjob.rlhf.dev/first", "rlhfjob.rlhf.dev/second"]


def test_all_namespaces_have_their_column(bench: Bench) -> None:
    place = f"-A --context here --kubeconfig {bench.kubeconfig}"
    mine = without_ages(bench.rlhfctl(f"list {place}"))
    assert mine == without_ages(bench.kubectl(f"get rlhfjobs {place}"))
    assert mine[0].startswith("NAMESPACE")


@pytest.mark.parametrize("kind", ["rlhfjob.rlhf.dev/", "rlhfjobs.rlhf.dev/", "rlhfjobs/", ""])
def test_a_job_may_be_named_with_its_kind(kind: str, bench: Bench) -> None:
    words = f"{kind}first -o name --kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    assert bench.rlhfctl(f"get {words}") == "rlhfjob.rlhf.dev/first\n"


def test_several_documents_are_a_stream_of_yaml(bench: Bench) -> None:
    files = [bench.folder / f"{name}.yaml" for name in ("fourth", "fifth")]
    for file in files:
        file.write_text(yaml.safe_dump(manifest(bench.namespace, file.stem, stages="sft")))
    place = f"--kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    told = bench.rlhfctl(f"submit --dry-run -o yaml {files[0]} {files[1]} {place}")
    made = [item["metadata"]["name"] for item in yaml.safe_load_all(told)]
    assert made == ["fourth", "fifth"]


@pytest.mark.parametrize("form", ["name", "json", "yaml"])
def test_what_is_submitted_is_told_as_kubectl_apply_tells_it(form: str, bench: Bench) -> None:
    file = bench.folder / "third.yaml"
    made = manifest(bench.namespace, "third", stages="sft reward ppo")
    file.write_text(yaml.safe_dump(made))
    words = f"-f {file} -o {form} --kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    mine = FORMS[f"-o {form}"](bench.rlhfctl(f"submit --dry-run {words}"))
    theirs = FORMS[f"-o {form}"](
        bench.kubectl(f"apply --server-side --dry-run=server --field-manager=rlhfctl {words}")
    )
    assert same(mine) == same(theirs)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("suspend first", 'patch rlhfjob first --type=merge -p \'{"spec": {"suspend": true}}\''),
        ("resume first", 'patch rlhfjob first --type=merge -p \'{"spec": {"suspend": false}}\''),
        ("retry first", "annotate rlhfjob first rlhf.dev/retry-sft=2 --overwrite"),
        ("delete first --no-wait", "delete rlhfjob second"),
    ],
)
def test_what_is_changed_is_named_as_kubectl_names_it(mine: str, theirs: str, bench: Bench) -> None:
    failed = {"status": {"stages": {"sft": {"phase": "Failed", "attempt": 2}}}}
    kind = "rlhf.dev/v1alpha1/rlhfjobs"
    bench.plane.client.patch(kind, "first", failed, bench.namespace, subresource="status")
    place = f"-o name --kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    told = bench.rlhfctl(f"{mine} {place}")
    assert told == bench.kubectl(f"{theirs} {place}").replace("second", "first")


def same(told: Any) -> Any:
    """Without what a server makes anew for each dry run."""
    if isinstance(told, str):
        return re.sub(r" \(.*\)|serverside-applied", "", told).strip()
    meta = {k: v for k, v in told["metadata"].items() if k not in ("uid", "creationTimestamp")}
    return {**told, "metadata": {k: v for k, v in meta.items() if k != "managedFields"}}


def test_a_job_that_never_began_is_deleted_with_checkpoints_it_never_had(bench: Bench) -> None:
    bench.plane.client.create(manifest(bench.namespace, "early", stages="sft"), bench.namespace)
    place = f"--kubeconfig {bench.kubeconfig} -n {bench.namespace}"
    told = bench.rlhfctl(f"delete early --checkpoints --yes {place}")
    assert "There is no claim early-checkpoints" in told


def test_what_is_followed_is_told_beside_the_document_that_a_program_reads(bench: Bench) -> None:
    file = bench.folder / "followed.yaml"
    file.write_text(yaml.safe_dump(manifest(bench.namespace, "followed", stages="sft")))
    place = ["--kubeconfig", str(bench.kubeconfig), "-n", bench.namespace]
    words = ["submit", str(file), "-o", "json", "--wait", *place]
    command = [sys.executable, "-m", "rlhf_cli", *words]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    named = ("rlhf.dev/v1alpha1/rlhfjobs", "followed")
    bench.plane.client.wait_for(*named, lambda job: job is not None, bench.namespace)
    since = "2026-01-05T10:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Done", "lastTransitionTime": since}
    sft = {"phase": "Succeeded", "attempt": 1}
    status = {"observedGeneration": 1, "conditions": [ready], "stages": {"sft": sft}}
    bench.plane.client.patch(*named, {"status": status}, bench.namespace, subresource="status")
    out, said = process.communicate(timeout=PATIENCE)
    assert (json.loads(out)["metadata"]["name"], process.returncode) == ("followed", 0)
    assert "SFT" in said
