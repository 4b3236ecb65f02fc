"""Functions that a user brings in a mounted folder: rewards and judges."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlhf_api.stages.ppo import FunctionReward

from rlhf_trainer.errors import ConfigurationError

FAULTS: Final = (Exception, SystemExit)
"""What code of the user's may end in; a script that calls sys.exit would end the trainer as well,
with that exit code and not a word."""

Score = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]


def load_function(function: FunctionReward, paths: Mapping[str, str]) -> Score:
    """The function that `entrypoint` names in the folder (or file) where its source is mounted."""
    module_name, _, name = function.entrypoint.partition(":")
    folder = Path(paths.get(function.source, function.source))
    folder = folder if folder.is_dir() else folder.parent
    sys.path.insert(0, str(folder.resolve()))
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except FAULTS as error:
        raise ConfigurationError(_blame(function, folder, error)) from None
    if not callable(found):
        message = f"{function.entrypoint}: module {module_name} has no function {name}"
        raise ConfigurationError(message)
    score: Score = found
    return score


def call_function(
    function: FunctionReward,
    score: Score,
    prompts: list[str],
    answers: list[str],
    rows: list[dict[str, Any]],
) -> list[float]:
    """One number for each answer, or ConfigurationError with the user's file and line."""
    try:
        values = [float(value) for value in score(prompts, answers, rows)]
    except FAULTS as error:
        raise ConfigurationError(_blame(function, Path(), error)) from None
    if len(values) != len(answers):
        raise ConfigurationError(
            f"{function.entrypoint} gave {len(values)} scores for {len(answers)} answers"
        )
    return values


def _blame(function: FunctionReward, folder: Path, error: BaseException) -> str:
    """`module:function: KeyError: 'x' (my_rewards.py, line 12)`: the user's innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}, line {error.lineno})"
    if isinstance(error, ModuleNotFoundError) and not theirs:
        where = f" (looked in {folder})"
    return f"{function.entrypoint}: {type(error).__name__}: {error}{where}"
