"""docs/reference/cli.md has the words of --help, of every command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from rlhf_cli.arguments.parser import build_parser, commands_of
from rlhf_cli.failures import EXIT_CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
COMMANDS = commands_of(build_parser())


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "docs/site/commands.py"], capture_output=True, text=True, cwd=ROOT
    )
    assert made.stdout == PAGE, f"run make generate {made.stderr}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_section_with_each_flag_and_what_it_means(name: str) -> None:
    command, _ = COMMANDS[name]
    section = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert command.description
    assert command.description in section
    for action in command._actions:
        if not isinstance(action, argparse._HelpAction):
            assert action.help
            assert action.help in section
            assert all(f"`{flag}`" in section for flag in action.option_strings)


def test_the_page_tells_every_exit_code() -> None:
    assert all(f"| {code} | {meaning} |" in PAGE for code, meaning in EXIT_CODES.items())
