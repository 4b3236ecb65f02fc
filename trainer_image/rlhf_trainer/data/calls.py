"""Calls of functions, as data sets write them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

from rlhf_trainer.data.examples import Call
from rlhf_trainer.data.problems import RowProblem

ARGUMENTS: Final = ("arguments", "parameters")
OF_A_CALL: Final = frozenset({"id", "type", "index", "function", "name", *ARGUMENTS})
"""Keys of OpenAI's API, of transformers and of Llama."""


def calls_of(value: Any, where: str) -> tuple[Call, ...]:
    """The calls in OpenAI's `tool_calls`, or its older `function_call`, also as JSON text."""
    with suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) else value
    calls = value if isinstance(value, list) else [value]
    return tuple(_call(call, f"{where}[{number}]") for number, call in enumerate(calls, 1))


def calls_in(text: str, where: str) -> tuple[Call, ...]:
    """What LLaMA-Factory and ms-swift have in a turn of its own, the JSON of one call or several;
    none of other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = value if isinstance(value, list) else [value]
    are_calls = all(isinstance(call, dict) and "name" in call for call in calls)
    return calls_of(calls, where) if calls and are_calls else ()


def _call(call: Any, where: str) -> Call:
    call = call if isinstance(call, dict) else {}
    function = call.get("function", call)
    function = function if isinstance(function, dict) else {}
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowProblem(f"`{where}` names no function")
    if unknown := sorted({*call, *function} - OF_A_CALL):
        raise RowProblem(f"`{where}` has `{unknown[0]}`, which is not read: leave it out")
    arguments: Any = next((function[key] for key in ARGUMENTS if key in function), {})
    if isinstance(arguments, str):  # OpenAI's API has the text of JSON in the JSON
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments) if arguments.strip() else {}
    return Call(name, json.dumps(arguments, ensure_ascii=False), str(call.get("id") or ""))
