"""How a chat template takes the calls of functions: found out by an example, as no template says.

Most want `arguments` as an object, DeepSeek's as text; DeepSeek's shows calls only where the turn's
content is none, and the first of Qwen3's fails on none; Mistral's takes ids of nine characters
alone. A template that has no notion of calls, or of tools' turns, is given text.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlhf_trainer.data.examples import Call, Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.shown import closed_up, shows_call
from rlhf_trainer.data.turns import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORT: Final = re.compile(r"[a-zA-Z0-9]{9}")
ARGUMENTS: Final = {"place": "Probeville"}
PROBE: Final = (
    Message("user", "What is it?"),
    Message("assistant", "", calls=(Call("probed", json.dumps(ARGUMENTS), "call_0123456789ab"),)),
    Message("tool", "a probed result", name="probed", call_id="call_0123456789ab"),
    Message("assistant", "It is."),
)
SCHEMA: Final = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Where."}},
            "required": ["place"],
        },
    },
}


class CallStyle(NamedTuple):
    """What a template wants of a turn that calls."""

    blank: str | None  # the content of one that says nothing
    as_text: bool  # arguments as JSON, and not as an object
    short_ids: bool  # Mistral's: nine letters and digits


def have_calls(turns: Turns) -> bool:
    """Whether some function is called, or has answered."""
    return any(turn.calls or turn.role == "tool" for turn in turns)


def as_called(tokenizer: PreTrainedTokenizerBase, turns: Turns, has_tools: bool) -> Turns:
    """The turns with an id for each call, and the call and name for each answer of a tool; with
    calls in their text where the template cannot show them. Raises RowProblem where a tool answers
    no call."""
    if not have_calls(turns):
        return turns
    turns = _linked(turns)
    style = _style_of(tokenizer, has_tools)
    if style is None:
        return tuple(turn._replace(content=turn.text, calls=()) for turn in turns)
    return tuple(map(_short, turns)) if style.short_ids else turns


def messages_of(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, has_tools: bool
) -> list[dict[str, Any]]:
    """The turns as the template takes them."""
    if not have_calls(turns):
        return [{"role": turn.role, "content": turn.content} for turn in turns]
    style = _style_of(tokenizer, has_tools) or CallStyle("", False, False)
    return [_message(turn, style) for turn in as_called(tokenizer, turns, has_tools)]


def _linked(turns: Turns) -> Turns:
    """Answers of tools name their call by its id; where calls have none, they come in order."""
    linked: list[Message] = []
    named: dict[str, Call] = {}  # by ids of the row's own
    waiting: list[Call] = []
    count = 0
    for turn in turns:
        if turn.calls:
            named |= {call.id: call for call in turn.calls if call.id}
            numbered = enumerate(turn.calls, count + 1)
            waiting = [call._replace(id=call.id or f"call{n:05}") for n, call in numbered]
            count += len(waiting)
            turn = turn._replace(calls=tuple(waiting))
        elif turn.role == "tool" and count:
            turn = _answering(turn, named, waiting)
        linked.append(turn)
    return tuple(linked)


def _answering(turn: Message, named: dict[str, Call], waiting: list[Call]) -> Message:
    """The tool's turn with its call, that waits no more."""
    call = named.get(turn.call_id)
    if call is None:
        call = next((c for c in waiting if not turn.call_id or c.id not in named), None)
    if call is None and turn.call_id:
        raise RowProblem(f"a tool answers the call {turn.call_id!r}, and no turn before it has it")
    if call is None:
        return turn
    waiting[:] = [other for other in waiting if other.id != call.id]
    return turn._replace(name=turn.name or call.name, call_id=call.id)


def _short(turn: Message) -> Message:
    calls = tuple(call._replace(id=_short_id(call.id)) for call in turn.calls)
    return turn._replace(calls=calls, call_id=_short_id(turn.call_id))


def _short_id(name: str) -> str:
    """Nine letters and digits that stand for it: its own, where it is so."""
    if not name or SHORT.fullmatch(name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]


def _message(turn: Message, style: CallStyle) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.calls:
        message["content"] = turn.content or style.blank
        message["tool_calls"] = [_call(call, style) for call in turn.calls]
    if turn.role == "tool":
        message |= {"name": turn.name} if turn.name else {}
        message |= {"tool_call_id": turn.call_id} if turn.call_id else {}
    return message


def _call(call: Call, style: CallStyle) -> dict[str, Any]:
    arguments = call.arguments if style.as_text else json.loads(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _style_of(tokenizer: PreTrainedTokenizerBase, has_tools: bool) -> CallStyle | None:
    tools = [SCHEMA] if has_tools else None
    return _found_style(tokenizer, tokenizer.get_chat_template(tools=tools), has_tools)


@lru_cache(maxsize=16)
def _found_style(
    tokenizer: PreTrainedTokenizerBase, template: str, has_tools: bool
) -> CallStyle | None:
    """The first of all ways in which the template shows a call, and what the tool answers."""
    for blank, as_text, short_ids in product(("", None), (False, True), (False, True)):
        style = CallStyle(blank, as_text, short_ids)
        probe = tuple(map(_short, PROBE)) if short_ids else PROBE
        try:
            text = tokenizer.apply_chat_template(
                [_message(turn, style) for turn in probe],
                tools=[SCHEMA] if has_tools else None,
                chat_template=template,
                tokenize=False,
            )
        except Exception:  # templates raise whatever their authors like
            continue
        if _is_all_there(str(text)):
            return style
    return None


def _is_all_there(text: str) -> bool:
    """Not so where an object was written in Python's notation."""
    (call,) = PROBE[1].calls
    is_shown = shows_call(closed_up(text), call) and PROBE[2].content in text
    return is_shown and str(ARGUMENTS) not in text
