"""What was asked: system message, earlier turns, question with its input."""

from __future__ import annotations

import json
from typing import Any, Final

from rlhf_trainer.data.columns import Names, cell
from rlhf_trainer.data.examples import Extras, Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.turns import (
    Turns,
    are_texts,
    history_of,
    in_turn,
    is_transcript,
    is_turn,
    marked_turns,
    text_of,
    transcript_turns,
    turns_of,
    with_turns,
)

KWARGS: Final = "chat_template_kwargs"
OURS: Final = frozenset(
    {"conversation", "messages", "tools", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
    | {"conversations", "strftime_now"}
)
"""Parameters of ``apply_chat_template`` that say how rows are read; ``tools`` have a column."""


class PromptReader:
    """Reads the turns in a prompt or dialogue column, with the columns that belong to it."""

    def __init__(self, names: Names, column: str, *, taken: str | None = None) -> None:
        self.column = column
        self._names, self._taken = names, taken
        # dolly's `context` belongs to its instruction; another prompt's context may be anything
        self._is_dialogue = column == names.get("messages")
        self._has_input = names.mapped("input") or column in ("instruction", "prompt")

    @classmethod
    def of(cls, names: Names, *, but: str | None = None) -> PromptReader | None:
        """For the prompt column, or None where there is none."""
        column = names.get("prompt", but=but)
        if column is None and isinstance(names.examples.get("context"), list):
            column = "context"  # HelpSteer3: the dialogue so far
        if column is None and isinstance(names.examples.get("history"), str):
            column = "history"  # SHP: the post that was answered
        return None if column is None else cls(names, column, taken=but)

    @classmethod
    def of_dialogue(cls, names: Names) -> PromptReader | None:
        """For a dialogue column that ends with the question, or None."""
        column = names.get("messages")
        return None if column is None else cls(names, column)

    @classmethod
    def of_any(cls, names: Names) -> PromptReader | None:
        """For the prompt column, else a dialogue column; what the user mapped goes first."""
        if names.mapped("messages") and not names.mapped("prompt"):
            return cls.of_dialogue(names)
        return cls.of(names) or cls.of_dialogue(names)

    def __call__(self, row: dict[str, Any]) -> Turns:
        """System message, history, question."""
        turns = self._asked(row)
        history = self._names.of_row("history", row, but=self.column)
        if history in row and history != self.column and row[history] != "":
            own = int(turns[0].role == "system")
            turns = turns[:own] + history_of(row[history], history) + turns[own:]
        return with_system(turns, row, self._names)

    def _asked(self, row: dict[str, Any]) -> Turns:
        value = with_turns(cell(row, self.column))
        if are_texts(value) and self._is_dialogue:
            return in_turn(value, self.column)
        if isinstance(value, list):
            return turns_of(value, self.column)
        if is_turn(value):
            return turns_of([value], self.column)
        if is_transcript(value):
            return transcript_turns(value, self.column)
        column = self._names.of_row("input", row, but=self.column) if self._has_input else None
        further = row.get(column) if column and column != self._taken else None
        if further is None or further == "":
            return marked_turns(text_of(value, self.column), self.column)
        if not isinstance(further, str):
            raise RowProblem(f"`{column}` is {type(further).__name__}, not text")
        text = f"{value}\n{further}" if value else further  # as LLaMA-Factory joins them
        return (Message("user", text_of(text, self.column)),)


def with_system(turns: Turns, row: dict[str, Any], names: Names) -> Turns:
    """The turns behind the system message that the row has in a column of its own. RowProblem where
    they begin with another one."""
    system = _system_turn(row, names)
    if turns[0].role != "system":
        return system + turns
    if system and system[0].content.strip() != turns[0].content.strip():
        column = names.of_row("system", row)
        raise RowProblem(f"`{column}` is not the system message that the turns begin with")
    return turns


def _system_turn(row: dict[str, Any], names: Names) -> Turns:
    """Where there is one with something in it."""
    column = names.of_row("system", row)
    text = row.get(column) if column else None
    if text is None or text == "":
        return ()
    if not isinstance(text, str):
        raise RowProblem(f"`{column}` is {type(text).__name__}, not text")
    return (Message("system", text),) if text.strip() else ()


def extras_of(row: dict[str, Any], names: Names) -> Extras:
    """What a row gives its chat template beside the turns."""
    return Extras(_tools_of(row, names), _kwargs_of(row))


def _kwargs_of(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """TRL's ``chat_template_kwargs``, such as ``{"enable_thinking": false}``."""
    value = _decoded(row.get(KWARGS), KWARGS)
    if not value:
        return ()
    if not isinstance(value, dict):
        raise RowProblem(f"`{KWARGS}` is {type(value).__name__}, not an object of names and values")
    if ours := sorted(OURS & value.keys()):
        raise RowProblem(f"`{KWARGS}` sets `{ours[0]}`, which is not for a row to set")
    return tuple(value.items())


def _tools_of(row: dict[str, Any], names: Names) -> tuple[Any, ...]:
    """Schemas of the functions that the assistant may call; JSON text is decoded."""
    column = names.of_row("tools", row)
    value = _decoded(row.get(column), column) if column else None
    if not value:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _decoded(value: Any, column: str) -> Any:
    """A cell that may hold its value as JSON text; None where it is blank."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        raise RowProblem(f"`{column}` is not JSON") from None
