"""Answers against each other: pairs, dialogues that part, ranked lists, two rivals and a winner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from rlhf_trainer.data.columns import number
from rlhf_trainer.data.examples import Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.turns import (
    Turns,
    are_texts,
    in_turn,
    is_transcript,
    is_turn,
    text_of,
    transcript_turns,
    turns_of,
    with_turns,
)

TEXT_KEYS: Final = ("text", "answer", "response", "content", "output", "completion", "value")
RANK_KEYS: Final = ("rank", "ranking")
SCORE_KEYS: Final = ("score", "overall_score", "rating", "reward", "pm_score")


def continuation(value: Any, column: str) -> Turns:
    """An answer in any notation: text, one message, a list of them, a whole transcript."""
    if is_transcript(value):
        return transcript_turns(value, column)
    value = with_turns(value)
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return (Message("assistant", text_of(value[0], column)),)
        return turns_of(value, column)
    if is_turn(value):
        return turns_of([value], column)
    if isinstance(value, dict):
        value = next((value[key] for key in TEXT_KEYS if key in value), value)
    return (Message("assistant", text_of(value, column)),)


def are_dialogues(*answers: Turns) -> bool:
    """Whether the answers bring their prompt along."""
    return all(answer[0].role in ("user", "system") for answer in answers)


def parted(asked: Turns, best: Turns, worst: Turns) -> tuple[Turns, tuple[Turns, Turns]]:
    """(shared prompt, (best, worst) as they go on), both starting with an assistant's turn.

    Two dialogues usually part at the last answer. Where they part earlier, what follows belongs to
    the answer; where they part at a user's turn, at the assistant's turn before it.
    """
    best, worst = asked + best, asked + worst
    if best == worst:
        raise RowProblem("chosen and rejected are the same")
    shared = _shared(best, worst)
    while shared > 0 and not _answers_from(shared, best, worst):
        shared -= 1
    if shared == 0:
        raise RowProblem("chosen and rejected do not share a prompt")
    for name, turns in (("chosen", best), ("rejected", worst)):
        if turns[-1].role != "assistant":
            raise RowProblem(f"`{name}` is blank: it ends without an answer")
    return best[:shared], (best[shared:], worst[shared:])


def _shared(first: Turns, second: Turns) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _answers_from(start: int, *dialogues: Turns) -> bool:
    """Whether each dialogue has an assistant's turn at ``start``; a dialogue that ends there has
    a blank answer, which is said of it later."""
    return all(len(turns) <= start or turns[start].role == "assistant" for turns in dialogues)


class Ranking(NamedTuple):
    """Answers, best first, and their ranks from 0; equal ranks are ties."""

    answers: tuple[Turns, ...]
    ranks: tuple[int, ...]


def are_scored(items: Any) -> bool:
    """Whether the items of a list carry their own rank or score."""
    keys = {*RANK_KEYS, *SCORE_KEYS}
    return isinstance(items, list) and all(isinstance(i, dict) and keys & set(i) for i in items)


def ranked(items: Any, column: str, ranks: Any = None, scores: Any = None) -> Ranking:
    """A list of K answers in order: by ``ranks`` (the lowest is best) or ``scores`` (the highest is
    best) where given, else by what the items carry, else best first as they stand."""
    if not isinstance(items, list) or len(items) < 2:
        raise RowProblem(f"`{column}` does not hold two answers or more")
    answers = [continuation(item, f"{column}[{n}]") for n, item in enumerate(items, 1)]
    worse = _places(items, column, ranks, scores)
    order = sorted(range(len(items)), key=lambda i: worse[i])
    levels = {place: level for level, place in enumerate(sorted(set(worse)))}
    if len(levels) < 2:
        raise RowProblem(f"all answers in `{column}` are tied")
    return _without_repeats([(answers[i], levels[worse[i]]) for i in order], column)


def _places(items: list[Any], column: str, ranks: Any, scores: Any) -> list[float]:
    """A number for each answer that rises from the best to the worst."""
    if ranks is not None:
        return _numbers(ranks, "ranks", len(items))
    if scores is not None:
        return [-score for score in _numbers(scores, "scores", len(items))]
    if not are_scored(items):
        return [float(index) for index in range(len(items))]
    for sign, keys in ((1, RANK_KEYS), (-1, SCORE_KEYS)):
        key = next((key for key in keys if all(key in item for item in items)), None)
        if key is not None:
            return [sign * number(item[key], f"{column}.{key}") for item in items]
    raise RowProblem(f"some answers in `{column}` have no rank or score")


def _numbers(values: Any, name: str, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise RowProblem(f"the {name} are not a list with one number for each of {count} answers")
    return [number(value, name) for value in values]


def _without_repeats(found: Sequence[tuple[Turns, int]], column: str) -> Ranking:
    first: dict[Turns, int] = {}
    for answer, level in found:
        if first.setdefault(answer, level) != level:
            raise RowProblem(f"`{column}` holds the same answer at two ranks")
    return Ranking(tuple(first), tuple(first.values()))


RIVALS: Final = (
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("answer_0", "answer_1"),
    ("answer_a", "answer_b"),
    ("output_1", "output_2"),
    ("conversation_a", "conversation_b"),
    ("human_ref_A", "human_ref_B"),
)
"""Columns of two answers (PKU-SafeRLHF, HelpSteer2 and 3, Arena, AlpacaFarm, SHP and the like)."""

FIRST, SECOND = True, False
VERDICTS: Final[dict[str, dict[str, bool]]] = {
    "better_response_id": {"0": FIRST, "1": SECOND},
    "winner": {"model_a": FIRST, "model_b": SECOND, "a": FIRST, "b": SECOND},
    "winner_model_a": {"1": FIRST, "0": SECOND},
    "preference": {"1": FIRST, "2": SECOND},
    "labels": {"1": FIRST, "0": SECOND},
}
STRENGTHS: Final = ("preference_strength", "overall_preference")
"""Below 0 the first is better, above 0 the second."""


def rivals(examples: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two columns of answers in a file that also says which won."""
    if not any(name in examples for name in (*VERDICTS, *STRENGTHS)):
        return None
    return next((pair for pair in RIVALS if all(name in examples for name in pair)), None)


def arena(
    row: Mapping[str, Any], asked: str, columns: tuple[str, str]
) -> tuple[Turns, Turns] | None:
    """The two dialogues of a row of Chatbot Arena's (55k): questions, and the answers of each, are
    lists in JSON. None where they are texts."""
    texts: list[Any] = []
    for name in (asked, *columns):
        value = row.get(name)
        with suppress(ValueError, RecursionError):
            value = json.loads(value) if isinstance(value, str) and value[:2] == '["' else value
        texts.append(value)
    questions, *answers = texts
    if not all(are_texts(text) and len(text) == len(questions) for text in texts):
        return None
    first, second = (
        in_turn([text for pair in zip(questions, said, strict=True) for text in pair], name)
        for name, said in zip(columns, answers, strict=True)
    )
    return first, second


def first_won(row: Mapping[str, Any]) -> bool:
    """Whether the first of two rivals is the better one; a tie teaches nothing and is refused."""
    for name in STRENGTHS:
        if name in row and (strength := number(row[name], name)):
            return strength < 0
    for name, verdicts in VERDICTS.items():
        if name in row and (won := verdicts.get(str(row[name]).lower())) is not None:
            return won
    raise RowProblem("neither of the two answers won")
