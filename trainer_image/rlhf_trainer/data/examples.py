"""What a row of a data set means, whatever its layout was."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A function that the assistant calls."""

    name: str
    arguments: str  # JSON
    id: str = ""

    @property
    def text(self) -> str:
        """In the notation of Hermes and Qwen."""
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        return f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"


class Message(NamedTuple):
    """One turn. ``trained`` is False for an assistant's turn that must not count in the loss."""

    role: str  # system, user, assistant, tool
    content: str  # '' where the assistant only calls
    trained: bool = True
    calls: tuple[Call, ...] = ()  # behind what the assistant says
    name: str = ""  # of a tool's turn: the function
    call_id: str = ""  # of a tool's turn: the call that it answers

    @property
    def text(self) -> str:
        """The turn with its calls in plain words."""
        said = [self.content] if self.content or not self.calls else []
        return "\n".join([*said, *(call.text for call in self.calls)])


class Extras(NamedTuple):
    """What a row gives its chat template beside the turns."""

    tools: tuple[Any, ...] = ()  # JSON schemas of functions, for templates that show them
    kwargs: tuple[tuple[str, Any], ...] = ()  # names that the template reads, with their values


class Dialogue(NamedTuple):
    """A dialogue to imitate: at least one turn is the assistant's."""

    id: str
    messages: tuple[Message, ...]
    extras: Extras = Extras()


class Preference(NamedTuple):
    """Answers to one prompt, best first.

    An answer is a continuation: one assistant turn, or several turns where two dialogues part
    earlier than at their last answer (as some of hh-rlhf do). Equal ranks are ties.
    """

    id: str
    prompt: tuple[Message, ...]
    answers: tuple[tuple[Message, ...], ...]
    ranks: tuple[int, ...]  # one per answer, rising; 0 is the best
    margin: float = 0.0
    extras: Extras = Extras()


class Prompt(NamedTuple):
    """A question that the policy is to answer; ``row`` is the whole row, for reward functions."""

    id: str
    messages: tuple[Message, ...]
    row: dict[str, Any]
    extras: Extras = Extras()


class Labelled(NamedTuple):
    """An answer that was called good or bad (KTO)."""

    id: str
    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    extras: Extras = Extras()


class PlainText(NamedTuple):
    """Running text, as for the pretraining mix."""

    id: str
    text: str
