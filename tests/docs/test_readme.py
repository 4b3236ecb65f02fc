"""What README.md says is true: its manifest is valid, its commands exist, its files are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from rlhf_api.schema import job_schema
from rlhf_api.validation import parse_job

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def rlhfctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def test_the_manifest_in_the_readme_is_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert list(parse_job(yaml.safe_load(block)).spec.stages.present()) == [
        "sft",
        "reward",
        "ppo",
        "dpo",
    ]


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"rlhfctl (\w+)", README))
    assert {"validate", "run", "status", "report", "chat", "render", "schema"} <= named
    for name in sorted(named):
        done = rlhfctl(name, "--help")
        assert done.returncode == 0, f"rlhfctl {name}: {done.stderr}"


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_every_example_is_valid_and_rendered() -> None:
    examples = sorted((REPOSITORY / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        done = rlhfctl("render", str(example))
        assert done.returncode == 0, done.stderr
        kinds = {item["kind"] for item in yaml.safe_load_all(done.stdout) if item}
        assert {"Job", "Service", "ConfigMap"} <= kinds


def test_the_generated_schema_is_up_to_date() -> None:
    written = json.loads((REPOSITORY / "crds" / "rlhfjob.schema.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(job_schema()))
