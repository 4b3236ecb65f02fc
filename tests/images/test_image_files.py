"""What Dockerfiles, the build's context and the chart say of images fits together."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rlhf_api.job import DEFAULT_IMAGE
from rlhf_api.run import WORKDIR
from rlhf_operator.render.security import USER_ID
from rlhf_operator.settings import Settings

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = REPOSITORY / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text())["project"]
VALUES = yaml.safe_load((REPOSITORY / "charts/rlhf-operator/values.yaml").read_text())
OPERATOR, TRAINER = "operator/Dockerfile", "trainer_image/Dockerfile"
BOTH = pytest.mark.parametrize("file", [OPERATOR, TRAINER])
LABELS = {"title", "description", "version", "revision", "source", "licenses", "base.name"}


def instructions(file: str) -> list[tuple[str, str]]:
    """Keyword and arguments of each, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / file).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def last_stage(file: str) -> dict[str, str]:
    """Of each keyword the last one in the stage that becomes the image."""
    found: dict[str, str] = {}
    for keyword, words in instructions(file):
        found = {} if keyword == "FROM" else found | {keyword: words}
    return found


def requirements(*extras: str) -> list[str]:
    """As the images' build asks for them."""
    script = REPOSITORY / "images/requirements.py"
    words = [sys.executable, str(script), str(PYPROJECT), *extras]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


@BOTH
def test_the_base_is_an_argument_and_pinned_by_its_tag(file: str) -> None:
    keyword, words = instructions(file)[0]
    name, _, base = words.partition("=")
    assert (keyword, name) == ("ARG", "BASE")
    assert base.rpartition(":")[2] not in ("", "latest", base)
    stages = [words.split()[0] for keyword, words in instructions(file) if keyword == "FROM"]
    assert set(stages) <= {"${BASE}", "python"}


@BOTH
def test_the_last_stage_installs_nothing_and_has_its_labels(file: str) -> None:
    last = last_stage(file)
    assert "RUN" not in last
    assert set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", last["LABEL"])) == LABELS


@BOTH
def test_requirements_come_before_the_code_so_that_a_change_is_a_small_layer(file: str) -> None:
    words = [words for _, words in instructions(file)]
    (installed,) = (i for i, text in enumerate(words) if "install.sh requirements" in text)
    (code,) = (i for i, text in enumerate(words) if text == "operator /src/operator")
    assert installed < code


def test_users_are_numbers_and_those_that_pods_run_as() -> None:
    chart = VALUES["podSecurityContext"]
    assert last_stage(OPERATOR)["USER"] == f"{chart['runAsUser']}:{chart['runAsGroup']}"
    assert last_stage(TRAINER)["USER"] == f"{USER_ID}:{USER_ID}"
    assert last_stage(TRAINER)["WORKDIR"] == WORKDIR


def test_the_operators_ports_are_its_own() -> None:
    standard = Settings()
    assert last_stage(OPERATOR)["EXPOSE"].split()[:2] == [
        str(standard.health_port),
        str(standard.progress_port),
    ]


def test_names_and_versions_are_those_of_the_chart_and_of_the_default() -> None:
    chart = yaml.safe_load((REPOSITORY / "charts/rlhf-operator/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == PROJECT["version"]
    assert f"rlhf-trainer:{PROJECT['version']}" == DEFAULT_IMAGE
    assert VALUES["image"]["repository"] == "rlhf-operator"


@pytest.mark.parametrize("extras", [("operator",), ("trainer", "trackers", "vllm")])
def test_all_that_is_installed_is_pinned_within_what_the_project_allows(
    extras: tuple[str, ...],
) -> None:
    pins = pinned("constraints.txt") | pinned("constraints-vllm.txt")
    asked = [Requirement(line) for line in requirements(*extras)]
    assert len(asked) > len(PROJECT["dependencies"])
    for one in asked:
        assert pins[canonicalize_name(one.name)] in one.specifier, one


def test_what_vllm_adds_is_pinned_once_and_leaves_the_pins_of_the_tests_alone() -> None:
    assert not pinned("constraints.txt").keys() & pinned("constraints-vllm.txt").keys()


def test_the_trainers_image_has_what_it_is_documented_to_have() -> None:
    arguments = [words.partition("=") for word, words in instructions(TRAINER) if word == "ARG"]
    (extras,) = (given for name, _, given in arguments if name == "EXTRAS" and given)
    asked = {Requirement(line).name for line in requirements(*extras.strip('"').split())}
    assert asked >= {"torch", "deepspeed", "transformers", "peft", "vllm"}


def pinned(file: str) -> dict[str, str]:
    """Version by name, as a file of constraints has it."""
    lines = (REPOSITORY / file).read_text().splitlines()
    named = (line.partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in named}


def test_an_extra_that_is_not_there_is_refused_by_its_name() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        requirements("jax")
    assert "has no extra jax; it has operator, report" in refused.value.stderr


@pytest.mark.parametrize(
    "path",
    [
        *(".git/config", ".venv/bin/python", "runs/demo/status.yaml", "tests/conftest.py"),
        *("operator/rlhf_api/__pycache__/job.cpython-311.pyc", "kubeconfig", ".env", "docs/x.md"),
    ],
)
def test_the_context_leaves_out(path: str) -> None:
    assert not is_in_context(path)


@BOTH
def test_the_context_has_what_is_copied(file: str) -> None:
    for keyword, words in instructions(file):
        if keyword == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert is_in_context(source), source
                assert (REPOSITORY / source).exists(), source


def is_in_context(path: str) -> bool:
    """As .dockerignore's rules decide: the last one that fits the path or a folder of it."""
    found = True
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(fits(part, pattern) for part in above):
                found = line.startswith("!")
    return found


def fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def test_neither_docker_nor_buildah_is_told_with_what_to_do(tmp_path: Path) -> None:
    for name in ("sh", "dirname"):
        (tmp_path / name).symlink_to(Path("/usr/bin") / name)
    done = build("operator", PATH=str(tmp_path))
    assert done.returncode == 69
    assert "Start docker, or: apt-get install buildah" in done.stderr


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ("", {}, "Usage: images/build.sh operator|trainer"),
        ("operator", {"BUILDER": "kaniko"}, "BUILDER is kaniko; it may be docker or buildah."),
    ],
)
def test_a_wrong_build_is_refused(words: str, variables: dict[str, str], said: str) -> None:
    done = build(*words.split(), PATH="/usr/bin:/bin", **variables)
    assert (done.returncode, done.stderr.strip()) == (64, said)


def build(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = [str(REPOSITORY / "images/build.sh"), *words]
    return subprocess.run(
        ["/bin/sh", *script], env=variables, capture_output=True, text=True, check=False
    )


def test_a_published_chart_names_the_published_images(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    helm, registry = str(program("helm")), "registry.example/team"
    package = [str(REPOSITORY / "images/chart.sh"), registry, str(tmp_path)]
    subprocess.run(package, env={"PATH": "/usr/bin:/bin", "HELM": helm}, check=True)
    version = PROJECT["version"]
    words = ["template", "it", f"{tmp_path}/rlhf-operator-{version}.tgz", "--kube-version=1.34.0"]
    done = subprocess.run([helm, *words], capture_output=True, text=True, check=True)
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{registry}/rlhf-operator:{version}"
    assert f"--default-image={registry}/rlhf-trainer:{version}" in container["args"]
