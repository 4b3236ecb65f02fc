"""The refusal of rows some of which their chat template leaves out: answers would be learnt without
it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_trainer.data.examples import Extras
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rendering import NOT_READ, Piece, not_shown, rendered
from rlhf_trainer.data.shown import closed_up, shows, shows_call
from rlhf_trainer.data.turns import Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def refuse_unless_shown(pieces: Sequence[Piece], turns: Turns) -> None:
    """RowProblem where what is to be learnt of a turn is not all there. Templates may set white
    space as they like, and may begin a thought in what asks, but not leave it out."""
    refuse_left_out("".join(piece.text for piece in pieces), turns)
    before = ""
    for piece in pieces:
        if piece.turn >= 0 and turns[piece.turn].trained:
            turn = turns[piece.turn]
            is_shown = closed_up(turn.content) in closed_up(before + piece.text)
            said = closed_up(piece.text) if turn.calls else ""
            if not is_shown or not all(shows_call(said, call) for call in turn.calls):
                raise not_shown(piece.turn)
        before = piece.text


def refuse_left_out(text: str, turns: Turns) -> None:
    """RowProblem where the system's words, a call or a tool's answer are not in what the template
    makes of the turns: answers would be learnt without them. Phi-3's first template left out the
    system's without a word."""
    if all(turn.role in ("user", "assistant") and not turn.calls for turn in turns):
        return
    left_out = next(_left_out(closed_up(text), turns), None)
    if left_out is not None:
        raise RowProblem(f"the chat template leaves out {left_out}", hint=NOT_READ)
    _refuse_crossed(text, turns)


def _left_out(said: str, turns: Turns) -> Iterator[str]:
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and closed_up(turn.content) not in said:
            yield "the system message"
        if turn.role == "tool" and not shows(said, turn.content):
            yield f"what a tool answers in turn {number}"
        for call in turn.calls:
            if not shows_call(said, call):
                yield f"the call of `{call.name}` in turn {number}"


def _refuse_crossed(text: str, turns: Turns) -> None:
    """RowProblem where tools answer in another order than they were called, and no id in the text
    tells which answer is whose."""
    called: list[str] = []
    for number, turn in enumerate(turns, 1):
        called = [call.id for call in turn.calls] or called
        if turn.role != "tool" or turn.call_id not in called:
            continue
        if turn.call_id != called[0] and text.count(turn.call_id) < 2:
            raise RowProblem(
                f"turn {number} answers another call than the next one, and the chat template "
                "does not show which: put tools' answers in the order of the calls"
            )
        called = [name for name in called if name != turn.call_id]


def refuse_without_tools(tokenizer: PreTrainedTokenizerBase, turns: Turns, extras: Extras) -> None:
    """RowProblem where the template shows no more of a function for its being given: answers that
    call it would be learnt of functions that nobody was told of."""
    if not extras.tools:
        return
    told = rendered(tokenizer, turns, extras)
    untold = rendered(tokenizer, turns, extras._replace(tools=()))
    for tool in extras.tools:
        name = _function_name(tool)
        if told.count(name) <= untold.count(name) if name else told == untold:
            which = f"`{name}` of " if name else ""
            raise RowProblem(f"the chat template leaves out {which}the row's tools", hint=NOT_READ)


def _function_name(tool: Any) -> str:
    """'' where it has none."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
