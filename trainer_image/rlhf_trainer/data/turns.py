"""Values of columns to turns of a dialogue: messages, sharegpt, pairs, hh-rlhf text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rlhf_trainer.data.calls import calls_in, calls_of
from rlhf_trainer.data.examples import Call, Message
from rlhf_trainer.data.problems import RowProblem

Turns = tuple[Message, ...]

CALLERS: Final = ("function_call", "tool_call")
"""Roles of LLaMA-Factory and ms-swift whose turn is a call."""
ROLES: Final[dict[str, str]] = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    **dict.fromkeys(CALLERS, "assistant"),
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
ROLE_KEYS: Final = ("role", "from", "speaker")
CALLS: Final = ("tool_calls", "function_call")
"""Of OpenAI's API; the older one is one call without a list."""
CONTENT_KEYS: Final = ("content", "value", "text")
MEDIA: Final = ("images", "image", "videos", "video", "audios", "audio")
PAIR_KEYS: Final = (("input", "output"), ("human", "assistant"), ("user", "assistant"))
WEIGHTS: Final = ("weight", "loss_weight", "loss", "train")
"""Whether a turn is learnt, as OpenAI, LLaMA-Factory, ms-swift and Axolotl write it."""
THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
PYTHON_TURNS: Final = re.compile(r"\[\{'(?:role|from|content|value)': ")
HH_TURN: Final = re.compile(r"(?:^|\n\n)(Human|Assistant|System):[ ]?")
BELLE_TURN: Final = re.compile(r"(?:^|\n)(Human|Assistant|System):[ ]?")
"""BELLE's and Guanaco's ways are taken where no turn begins as hh-rlhf's do."""
HELPSTEER_TURN: Final = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
GUANACO_TURN: Final = re.compile(r"(?:^|\n*)### (Human|Assistant|System):[ ]?")


def text_of(value: Any, column: str) -> str:
    """A cell that must be text with something in it; white space around it is kept."""
    if not isinstance(value, str):
        raise RowProblem(f"`{column}` is {type(value).__name__}, not text")
    if not value.strip():
        raise RowProblem(f"`{column}` is blank")
    if PYTHON_TURNS.match(value):
        raise RowProblem(
            f"`{column}` is a list of turns in Python's notation, as pandas writes it to CSV; "
            "write JSON, or JSON Lines or Parquet"
        )
    return value


def with_turns(cell: Any) -> Any:
    """A cell with the turn or turns that its text holds as JSON, else as it is: what is no turn may
    well be an answer in JSON."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("{", "[")):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    is_dialogue = is_turns(value) or (is_turn(value) and any(k in value for k in CONTENT_KEYS))
    return value if is_dialogue else cell


def marked(turns: Turns, *, trained: bool) -> Turns:
    """The same turns, all of them to be learnt or none."""
    return tuple(turn._replace(trained=trained) for turn in turns)


def is_turns(value: Any) -> bool:
    """Whether a cell looks like a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def is_turn(value: Any) -> bool:
    """Whether a value looks like one turn, or a question and its answer."""
    if not isinstance(value, dict):
        return False
    keys = set(value)
    return bool(keys & set(ROLE_KEYS)) or any(keys >= set(pair) for pair in PAIR_KEYS)


def turns_of(value: Any, column: str) -> Turns:
    """The turns in a cell that holds a list of messages."""
    if not isinstance(value, list) or not value:
        raise RowProblem(f"`{column}` is not a list of turns, or an empty one")
    turns: list[Message] = []
    for number, item in enumerate(value, 1):
        said = _turn(item, f"{column}[{number}]")
        if turns and said[0].calls and turns[-1].role == "assistant" and _is_swifts(item):
            turns[-1] = turns[-1]._replace(calls=turns[-1].calls + said[0].calls)
        else:
            turns.extend(said)
    return tuple(turns)


def _is_swifts(item: Mapping[str, Any]) -> bool:
    """Whether a turn is ms-swift's, where what is said and each call are turns of their own."""
    return item.get("role") == "tool_call"


def _turn(item: Any, where: str) -> Turns:
    if not isinstance(item, dict):
        raise RowProblem(f"`{where}` is not an object with role and content")
    role_key = next((key for key in ROLE_KEYS if key in item), None)
    if role_key is None:
        return _pair(item, where)
    name = item[role_key]
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowProblem(f"`{where}` has the unknown {role_key} {name!r}")
    trained = _is_trained(item, where)
    _refuse_speaker(item, where, role)
    calls = _calls(item, where)
    if calls and role != "assistant":
        raise RowProblem(f"`{where}` calls functions, and is the {role}'s turn")
    content = _content(item, where, is_blank=bool(calls) or role in ("system", "tool"))
    if name.lower() in CALLERS and (calls := calls_in(content, where)):
        content = ""
    if role == "tool":
        return (Message(role, content, trained, (), *_answered(item)),)
    return (Message(role, content, trained, calls),)


def _calls(item: Mapping[str, Any], where: str) -> tuple[Call, ...]:
    found = next(((key, item[key]) for key in CALLS if item.get(key)), None)
    return calls_of(found[1], f"{where}.{found[0]}") if found else ()


def _answered(item: Mapping[str, Any]) -> tuple[str, str]:
    """(function, call) that a tool's turn says to answer."""
    return str(item.get("name") or ""), str(item.get("tool_call_id") or "")


def _is_trained(item: Mapping[str, Any], where: str) -> bool:
    given = {key: item[key] for key in WEIGHTS if item.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise RowProblem(f"`{where}.{key}` is {value!r}; a turn is learnt (1) or not (0)")
    return all(given.values())


def _refuse_speaker(item: Mapping[str, Any], where: str, role: str) -> None:
    """OpenAI's `name` tells people of one role apart; of a tool's answer it repeats the call."""
    if item.get("name") and role != "tool":
        raise RowProblem(
            f"`{where}` has a `name`, which is not read: write it into the content, or leave it out"
        )


def _pair(item: dict[str, Any], where: str) -> Turns:
    for question, answer in PAIR_KEYS:
        if question in item and answer in item:
            asked = text_of(item[question], f"{where}.{question}")
            given = text_of(item[answer], f"{where}.{answer}")
            return (Message("user", asked), Message("assistant", given))
    raise RowProblem(f"`{where}` has no role (one of {', '.join(ROLE_KEYS)})")


def _content(item: dict[str, Any], where: str, *, is_blank: bool) -> str:
    """What a turn says. `is_blank`: it may be nothing, as beside a call, or of a tool."""
    thoughts = next((key for key in THOUGHTS if item.get(key)), None)
    if thoughts is not None:
        raise RowProblem(
            f"`{where}` has `{thoughts}`, which is not read: write it into the content as the "
            "model's template does (<think>…</think>, say), or leave it out"
        )
    refuse_media(item, f"{where}.")
    content = next((item[key] for key in CONTENT_KEYS if item.get(key) is not None), None)
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and any(item.get(key) for key in CALLS):
        return ""
    if content is None:
        raise RowProblem(f"`{where}` has no content (one of {', '.join(CONTENT_KEYS)})")
    if isinstance(content, str) and not content.strip() and is_blank:
        return content
    return text_of(content, where)


def _part(part: Any, where: str) -> str:
    """One part of a content list; only text can be trained on."""
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RowProblem(f"`{where}` holds a part of type {kind!r}; only text can be used")
    return text


def history_of(value: Any, column: str) -> Turns:
    """Earlier turns, as LLaMA-Factory gives them: pairs of question and answer."""
    if not isinstance(value, list):
        raise RowProblem(f"`{column}` is not a list of question and answer")
    turns: list[Message] = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RowProblem(f"`{column}[{number}]` is not a question and its answer")
        asked, given = (text_of(text, f"{column}[{number}]") for text in pair)
        turns += [Message("user", asked), Message("assistant", given)]
    return tuple(turns)


def refuse_media(row: Mapping[str, Any], where: str = "") -> None:
    """Raise RowProblem where pictures or sounds belong to the text of a row, or of a turn in it:
    they would not be read."""
    for column in MEDIA:
        value, mark = row.get(column), f"<{column.removesuffix('s')}>"
        if value and (not isinstance(value, str) or mark in json.dumps(row, default=str)):
            raise RowProblem(f"`{where}{column}` belongs to the text; only text can be used")


def are_texts(value: Any) -> bool:
    """Whether a cell is a list of what was said in turn (LIMA, UltraChat)."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def in_turn(texts: Sequence[str], column: str) -> Turns:
    """Question, answer, question, …"""
    roles = ("user", "assistant")
    said = [text_of(text, f"{column}[{number}]") for number, text in enumerate(texts, 1)]
    return tuple(Message(roles[index % 2], text) for index, text in enumerate(said))


def marked_turns(text: str, column: str) -> Turns:
    """The turns of HelpSteer2's prompts: the user's first, others behind a mark; one of others."""
    first, *rest = HELPSTEER_TURN.split(text)
    roles = ("user", *("user" if name == "User" else "assistant" for name in rest[::2]))
    said = zip(roles, (first, *rest[1::2]), strict=True)
    return tuple(Message(role, text_of(content, column)) for role, content in said)


def is_transcript(value: Any) -> bool:
    """Whether a text is a whole dialogue as in hh-rlhf: ``\\n\\nHuman: … \\n\\nAssistant: …``."""
    return (
        isinstance(value, str)
        and value.lstrip().startswith(("Human:", "### Human:"))
        and "Assistant:" in value
    )


def transcript_turns(text: str, column: str) -> Turns:
    """The turns of an hh-rlhf or Guanaco transcript; a last ``Assistant:`` with nothing behind it
    asks for an answer and is no turn. Text is kept but for the notation itself."""
    pattern = HH_TURN if "\n\nAssistant:" in text else BELLE_TURN
    pattern = GUANACO_TURN if text.lstrip().startswith("###") else pattern
    pieces = pattern.split(text.lstrip())
    roles, contents = pieces[1::2], pieces[2::2]
    if pieces[0].strip() or not roles:
        raise RowProblem(f"`{column}` does not begin with a turn (Human: …)")
    if roles[-1] == "Assistant" and not contents[-1].strip():
        roles, contents = roles[:-1], contents[:-1]
    for number, content in enumerate(contents, 1):
        if not content.strip():
            raise RowProblem(f"`{column}` has a blank turn (number {number})")
    names = {"Human": "user", "Assistant": "assistant", "System": "system"}
    return tuple(Message(names[role], text) for role, text in zip(roles, contents, strict=True))
