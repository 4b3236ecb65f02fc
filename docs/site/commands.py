"""Prints docs/reference/cli.md: the very words of `rlhfctl COMMAND --help`, as a page."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rlhf_cli.arguments.parser import DESCRIPTION, EPILOG, build_parser, commands_of
from rlhf_cli.failures import EXIT_CODES

HEAD = """\
<!-- Made by `make generate` from operator/rlhf_cli/arguments: edit that. -->
# Commands

`rlhfctl`, as a plug-in of kubectl `kubectl rlhf`. {description}

{places}

A shell that completes `kubectl` completes `kubectl rlhf`, too, by `kubectl_complete-rlhf`, which is
installed with it; for `rlhfctl` see [completion](#completion).

Namespace, context and kubeconfig are those that `kubectl` would take, unless flags name others.
"""


def page() -> str:
    """The whole page."""
    parser = build_parser()
    places = " ".join(EPILOG.split("\n\n")[0].split())
    lines = [HEAD.format(description=DESCRIPTION, places=places)]
    for name, (command, text) in commands_of(parser).items():
        lines += [*_section(name, command, text), ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    lines += ["", "A stage that failed gives its trainer's own [exit code](conditions.md)."]
    return "\n".join(lines) + "\n"


def _section(name: str, command: argparse.ArgumentParser, text: str) -> Iterator[str]:
    actions = [action for action in command._actions if action.dest != "help"]
    words = [_usage(action) for action in actions if not action.option_strings]
    flags = [action for action in actions if action.option_strings]
    yield f"## {name}"
    yield ""
    yield f"{text[0].upper()}{text[1:]}."
    yield ""
    yield "```text"
    yield " ".join(["rlhfctl", name, *words, *(["[FLAGS]"] if flags else [])])
    yield "```"
    yield ""
    yield "| argument | meaning |"
    yield "|---|---|"
    for action in actions:
        yield f"| {_term(action)} | {_meaning(action)} |"


def _usage(action: argparse.Action) -> str:
    word = _value(action)
    return {"?": f"[{word}]", "*": f"[{word} …]", "+": f"{word} …"}.get(str(action.nargs), word)


def _value(action: argparse.Action) -> str:
    if action.choices and not action.metavar:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _term(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _value(action).replace("|", "\\|")
    names = ", ".join(f"`{flag}`" for flag in action.option_strings)
    return " ".join(filter(None, [names, f"`{value}`" if value else ""]))


def _meaning(action: argparse.Action) -> str:
    told = action.help or ""
    is_told = action.default in (None, False, []) or "default" in told
    return told if is_told or not action.option_strings else f"{told} (default: {action.default})"


if __name__ == "__main__":
    print(page(), end="")
