"""Layouts of rows: which columns make which, and what a row of each means.

A layout looks at the columns of a file (with an example of each) and gives a function that reads
one row, or None. The first in the list that fits is taken; one that reads what the user mapped goes
before one that does not. Tables of names that real data sets use are in ``columns``; this file is
about structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rlhf_api.data import DataSource

from rlhf_trainer.data import preferences
from rlhf_trainer.data.calls import calls_in
from rlhf_trainer.data.columns import Names, cell, number, truth
from rlhf_trainer.data.examples import Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.prompts import PromptReader, extras_of, with_system
from rlhf_trainer.data.sample import Sample
from rlhf_trainer.data.turns import (
    Turns,
    are_texts,
    is_transcript,
    is_turn,
    is_turns,
    text_of,
    transcript_turns,
    turns_of,
    with_turns,
)
from rlhf_trainer.errors import BadData

Read = Callable[[dict[str, Any]], Sample]


class Layout(NamedTuple):
    """One way to lay out a row."""

    formats: frozenset[str]  # values of `format` that ask for it
    columns: str  # for people
    fit: Callable[[Names], Read | None]
    parts: frozenset[str]  # those of `columns` that it reads


def recognise(source: DataSource, file: str, examples: Mapping[str, Any]) -> Read:
    """The reader for a file with these columns; BadData with what was found and what is known."""
    names = Names(source.columns, examples, source.format)
    for layout in sorted(LAYOUTS, key=lambda layout: len(names.unread(layout.parts))):
        if source.format == "auto" or source.format in layout.formats:
            read = layout.fit(names)
            if read is not None:
                _refuse_unread(f"{source.source}: {file}", layout, names)
                return read
    raise BadData(_unrecognised(source, file, examples))


def _refuse_unread(where: str, layout: Layout, names: Names) -> None:
    """What was mapped and is not looked at would be missing from what is trained on."""
    if unread := names.unread(layout.parts):
        fields = " and ".join(f"columns.{part}" for part in unread)
        raise BadData(
            f"{where}: {fields} would not be read: the rows are taken as {layout.columns}; "
            "leave it out, or map the other columns that such rows have"
        )


def _unrecognised(source: DataSource, file: str, examples: Mapping[str, Any]) -> str:
    asked = "" if source.format == "auto" else f" as format {source.format!r}"
    known = "\n".join(f"  {'/'.join(sorted(item.formats))}: {item.columns}" for item in LAYOUTS)
    return (
        f"{source.source}: {file}: the columns are not recognised{asked}.\n"
        f"Found: {', '.join(examples) or 'none'}.\nKnown layouts:\n{known}\n"
        "Other names can be mapped, e.g. columns: {prompt: my_question, answer: my_answer}."
    )


def _kto(names: Names) -> Read | None:
    label = names.get("label")
    if label is None:
        return None
    value = names.examples.get(label)
    sure = isinstance(value, bool) or label == "kto_tag" or str(value).lower() in ("true", "false")
    if not sure and not names.mapped("label") and names.format != "kto":
        return None  # a class label of some other task
    answered_first = names.mapped("prompt") or names.mapped("answer")
    fits = (_answered, _messages) if answered_first else (_messages, _answered)
    read = fits[0](names) or fits[1](names)
    if read is None:
        return None

    def labelled(row: dict[str, Any]) -> Sample:
        return read(row)._replace(good=truth(cell(row, label), label))

    return labelled


def _ranked(names: Names) -> Read | None:
    answers = names.get("answers")
    if answers is None or not isinstance(names.examples.get(answers), list):
        return None
    prompt = PromptReader.of(names, but=answers)
    ranks, scores = names.get("ranks"), names.get("scores")
    items = names.examples[answers]
    telling = ranks or scores or preferences.are_scored(items) or names.format == "ranked"
    if prompt is None or not (telling or names.mapped("answers") or answers == "output"):
        return None  # several equally right answers, say of a quiz, are no ranking

    def read(row: dict[str, Any]) -> Sample:
        found = preferences.ranked(
            cell(row, answers),
            answers,
            cell(row, ranks) if ranks else None,
            cell(row, scores) if scores else None,
        )
        return Sample(prompt(row), found.answers, found.ranks, extras=extras_of(row, names))

    return read


def _pair(names: Names) -> Read | None:
    chosen, rejected = names.get("chosen"), names.get("rejected")
    if chosen is None or rejected is None:
        return None
    prompt = PromptReader.of_any(names)

    def read(row: dict[str, Any]) -> Sample:
        best = preferences.continuation(cell(row, chosen), chosen)
        worst = preferences.continuation(cell(row, rejected), rejected)
        # a prompt beside whole dialogues repeats their start, and may be absent
        asked: Turns = ()
        if prompt is not None and not preferences.are_dialogues(best, worst):
            asked = prompt(row)
        before, answers = preferences.parted(asked, best, worst)
        before = with_system(before, row, names)
        margin = names.of_row("margin", row) or "margin"
        by = number(row[margin], margin) if row.get(margin, "") != "" else 0.0
        return Sample(before, answers, (0, 1), margin=by, extras=extras_of(row, names))

    return read


def _versus(names: Names) -> Read | None:
    columns = preferences.rivals(names.examples)
    if columns is None:
        return None
    prompt = PromptReader.of_any(names)

    def read(row: dict[str, Any]) -> Sample:
        if prompt and (both := preferences.arena(row, prompt.column, columns)):
            first, second = both
        else:
            first, second = (preferences.continuation(cell(row, name), name) for name in columns)
        best, worst = (first, second) if preferences.first_won(row) else (second, first)
        asked = prompt(row) if prompt and not preferences.are_dialogues(first, second) else ()
        before, answers = preferences.parted(asked, best, worst)
        return Sample(before, answers, (0, 1), extras=extras_of(row, names))

    return read


def _messages(names: Names) -> Read | None:
    column = names.get("messages")
    example = names.example("messages")
    if column is None or not (names.mapped("messages") or is_turns(example) or are_texts(example)):
        return None
    reader = PromptReader(names, column)

    def read(row: dict[str, Any]) -> Sample:
        return _dialogue(reader(row), names, row)

    return read


def _dialogue(turns: Turns, names: Names, row: dict[str, Any]) -> Sample:
    """A dialogue whose last turn answers, or asks for an answer."""
    extras = extras_of(row, names)
    if turns[-1].role != "assistant":
        return Sample(turns, extras=extras)
    if len(turns) == 1:
        raise RowProblem("the dialogue is an answer without a question")
    return Sample(turns[:-1], (turns[-1:],), (0,), extras=extras)


def _answered(names: Names) -> Read | None:
    prompt = PromptReader.of(names)
    answer = names.get("answer", but=prompt.column if prompt else None)
    if answer == "answer" and "solution" in names.examples and not names.mapped("answer"):
        answer = "solution"  # NuminaMath, LIMO: what it comes to stands in `answer`
    if prompt is None or answer is None:
        return None

    def read(row: dict[str, Any]) -> Sample:
        value = with_turns(cell(row, answer))
        value = [value] if is_turn(value) else value
        turns = turns_of(value, answer) if is_turns(value) else ()
        turns = turns or (Message("assistant", text_of(value, answer)),)
        return Sample(prompt(row), (turns,), (0,), extras=extras_of(row, names))

    return read


def _called(names: Names) -> Read | None:
    """xLAM's rows: what is asked, functions, and the calls that answer, as JSON."""
    prompt, column = PromptReader.of(names), names.get("answers")
    is_text = isinstance(names.example("answers"), str) and isinstance(names.example("tools"), str)
    if prompt is None or column != "answers" or not is_text:
        return None

    def read(row: dict[str, Any]) -> Sample:
        calls = calls_in(text_of(cell(row, column), column), column)
        if not calls:
            raise RowProblem(f"`{column}` is not the JSON of calls of the row's functions")
        answer = (Message("assistant", "", calls=calls),)
        return Sample(prompt(row), (answer,), (0,), extras=extras_of(row, names))

    return read


def _transcript(names: Names) -> Read | None:
    column = names.get("text") or names.get("messages")
    if column is None or not is_transcript(names.examples.get(column)):
        return None

    def read(row: dict[str, Any]) -> Sample:
        turns = transcript_turns(text_of(cell(row, column), column), column)
        return _dialogue(with_system(turns, row, names), names, row)

    return read


def _asked(names: Names) -> Read | None:
    prompt = PromptReader.of(names)
    if prompt is None:
        return None
    return lambda row: Sample(prompt(row), extras=extras_of(row, names))


def _text(names: Names) -> Read | None:
    column = names.get("text")
    if column is None:
        return None
    return lambda row: Sample((), text=text_of(cell(row, column), column))


ASKED: Final = frozenset({"prompt", "input", "system", "history"})
"""What PromptReader reads."""

LAYOUTS: Final[tuple[Layout, ...]] = (
    Layout(
        frozenset({"kto"}),
        "messages or prompt + answer, with a boolean label",
        _kto,
        ASKED | {"messages", "answer", "label"},
    ),
    Layout(
        frozenset({"ranked"}),
        "prompt/query + answers (a list) with ranks or scores, or best first with format: ranked",
        _ranked,
        ASKED | {"answers", "ranks"},
    ),
    Layout(
        frozenset({"preference", "hh", "sharegpt", "messages", "alpaca"}),
        "prompt/query/instruction/conversations + chosen + rejected (texts, messages or lists of "
        "messages), or chosen + rejected as whole dialogues that share their start",
        _pair,
        ASKED | {"messages", "chosen", "rejected", "margin"},
    ),
    Layout(
        frozenset({"preference"}),
        "prompt + two responses (response_0/response_1, response_a/response_b, …) + which won",
        _versus,
        ASKED | {"messages"},
    ),
    Layout(
        frozenset({"messages", "sharegpt"}),
        "messages/conversations: a list of role/content or from/value",
        _messages,
        frozenset({"messages", "system", "history"}),
    ),
    Layout(
        frozenset({"prompt", "alpaca"}),
        "prompt/query/question/instruction (+ input, system, history) + "
        "answer/response/completion/output/target",
        _answered,
        ASKED | {"answer"},
    ),
    Layout(
        frozenset({"prompt"}),
        "prompt/query + tools + answers: calls of functions as JSON (xLAM)",
        _called,
        ASKED | {"answers"},
    ),
    Layout(
        frozenset({"hh"}),
        "text: a transcript (Human: … Assistant: …)",
        _transcript,
        frozenset({"text", "messages", "system"}),
    ),
    Layout(
        frozenset({"prompt", "alpaca"}), "prompt/query/question/instruction alone", _asked, ASKED
    ),
    Layout(frozenset({"text"}), "text", _text, frozenset({"text"})),
)
