"""The documentation's site builds without a warning, and what its pages show is true."""

from __future__ import annotations

import copy
import functools
import html
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.control_plane import ControlPlane
from guide_commands import REPOSITORY, Shell
from rlhf_api.validation import parse_job
from rlhf_cli.arguments.parser import build_parser, commands_of
from rlhf_operator.render import Platform
from rlhf_operator.support import unsupported

Object = dict[str, Any]
DOCS = REPOSITORY / "docs"
RUN_ELSEWHERE = {
    "guides/on-a-cluster.md",
    "guides/install.md",
    "guides/alerts.md",
    "reference/conditions.md",
}
"""Pages whose commands and manifests have tests of their own."""
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in DOCS.rglob("*.md")
    if str(path.relative_to(DOCS)) not in RUN_ELSEWHERE
)
BASE: Object = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "page"},
    "spec": {
        "model": {"source": "hf://org/model"},
        "stages": {"sft": {"data": {"source": "hf://org/data"}}},
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was built."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="?(https?:[^" >]+)', page.read_text("utf-8")
        )
        assert [url for url in loaded if "squidfunk" not in url] == [], page


@pytest.mark.parametrize("kind", ["PPOStage", "Toleration", "Claim"])
def test_the_site_has_a_table_for_each_kind_of_object(kind: str, site: Path) -> None:
    assert f'id="{kind.lower()}"' in (site / "reference/fields/index.html").read_text("utf-8")


def test_every_field_of_the_reference_is_described(site: Path) -> None:
    text = (site / "reference/fields/index.html").read_text("utf-8")
    rows = [row.split("</td>") for row in text.split("<tr>") if "</td>" in row]
    assert len(rows) > 200
    assert [field for field, _, _, description, *_ in rows if description.strip() == "<td>"] == []


def test_the_reference_tells_the_bounds_of_numbers(site: Path) -> None:
    text = (site / "reference/fields/index.html").read_text("utf-8")
    rows = {
        row.split("</code>")[0].rpartition(">")[2]: row.split("<td>")[2].split("</td>")[0]
        for row in text.split("<tr>")
        if "<td>" in row
    }
    assert html.unescape(rows["gpusPerNode"]) == "integer, ≥ 0, ≤ 64"
    assert html.unescape(rows["labelSmoothing"]) == "number, ≥ 0, ≤ 0.49"
    assert rows["memory"] == "quantity"


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page without a title, indented ones too."""
    text = (DOCS / page).read_text("utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.M | re.S)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, body in found]


def manifests() -> Iterator[Any]:
    for page in PAGES:
        for number, body in enumerate(blocks(page, "yaml"), start=1):
            yield pytest.param(yaml.safe_load(body), id=f"{page} {number}")


@pytest.mark.parametrize("shown", manifests())
def test_a_manifest_of_a_page_is_valid(shown: Object) -> None:
    """Part of a spec stands for one whose other fields are the least that is needed."""
    made = shown if "kind" in shown else copy.deepcopy(BASE)
    if made is not shown:
        stages = {**BASE["spec"]["stages"], **shown.get("stages", {})}
        made["spec"] |= {**shown, "stages": stages}
    assert unsupported(parse_job(made), Platform()) == []


@pytest.fixture(scope="module")
def shell(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """With an Argo CD's ConfigMap in the cluster."""
    opened = Shell(tmp_path_factory.mktemp("site-shell"), installed.kubeconfig, installed.binaries)
    (opened.directory / "gitops").symlink_to(REPOSITORY / "gitops")
    client = installed.client
    client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "argocd"}})
    kind = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}}
    client.create(kind | {"data": {"url": "https://argocd.example"}}, "argocd")
    yield opened
    data = client.get("v1/configmaps", "argocd-cm", "argocd")["data"]
    assert "url" in data
    client.delete("v1/namespaces", "argocd")
    opened.close()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_the_commands_of_a_page_do_what_they_say(page: str, shell: Shell) -> None:
    for body in blocks(page, "console"):
        for command in body.splitlines():
            shell.run(command)


TOLD = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md", *REPOSITORY.glob("charts/*/*.md")]
PROGRAM = re.compile(r"(?:\.venv/bin/)?(?:rlhfctl|kubectl|helm|make) (?!rlhf\b)[a-z]")


def told_commands() -> Iterator[str]:
    """Those in sentences, and those of blocks whose title says what they need."""
    for page in TOLD:
        text = page.read_text("utf-8")
        for body in re.findall(r'^ *```console title=".*?"\n(.*?)^ *```', text, re.M | re.S):
            yield from body.splitlines()
        sentences = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
        for words in re.findall(r"`([^`]+)`", sentences):
            yield " ".join(words.split())


COMMANDS = sorted({command for command in told_commands() if PROGRAM.match(command)})


@pytest.fixture(scope="module")
def helped(control_plane: ControlPlane, program: Callable[[str], Path]) -> Callable[..., str]:
    """What `--help` of a verb says, and for kubectl what all of its verbs take."""
    kubectl, helm = control_plane.binaries / "kubectl", program("helm")

    @functools.cache
    def said(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def of(name: str, *verbs: str) -> str:
        if name == "rlhfctl":
            return commands_of(build_parser())[verbs[0]][0].format_help()
        if name == "helm":
            return said(str(helm), *verbs, "--help")
        return said(str(kubectl), *verbs, "--help") + said(str(kubectl), "options")

    return of


def test_the_search_finds_commands() -> None:
    shown = {
        "kubectl get rlhfjobs -n NAMESPACE -o wide",
        "make images BUILDER=buildah",
        ".venv/bin/rlhfctl doctor",
    }
    assert shown <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_only_told_has_a_verb_and_flags_that_are_there(
    command: str, helped: Callable[..., str]
) -> None:
    """Blocks without a title are run, by this file or by those of RUN_ELSEWHERE."""
    name, verb, *words = shlex.split(command.removeprefix(".venv/bin/"))
    if name == "make":
        files = [REPOSITORY / "Makefile", REPOSITORY / "images/build.sh"]
        told = "".join(path.read_text("utf-8") for path in files)
        assert f"\n{verb}:" in told
        used = [word.partition("=")[0] for word in words]
    else:
        told = helped(name, verb, *(words[:1] if verb == "auth" else []))
        used = [word.partition("=")[0] for word in words if re.match("--?[a-zA-Z]", word)]
    assert [word for word in used if not re.search(rf"(?<![\w-]){word}(?![\w-])", told)] == []


def test_the_commands_of_the_conditions_page_are_those_of_the_guide() -> None:
    guide = {
        line for body in blocks("guides/on-a-cluster.md", "console") for line in body.splitlines()
    }
    shown = {
        line for body in blocks("reference/conditions.md", "console") for line in body.splitlines()
    }
    assert shown <= guide
