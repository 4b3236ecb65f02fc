"""What a stage wants of a row whose layout was understood."""

from __future__ import annotations

from rlhf_trainer.data.columns import SYNONYMS
from rlhf_trainer.data.examples import Dialogue, Labelled, PlainText, Preference, Prompt
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rows import Row
from rlhf_trainer.data.sample import Sample


def dialogues_of(row: Row, sample: Sample) -> list[Dialogue]:
    """A dialogue to imitate. Raises RowProblem, as all of these do."""
    if sample.good is not None:
        raise RowProblem(
            "rows with a label hold bad answers too; `format: messages` or `format: prompt` "
            "trains on all of them"
        )
    if not sample.answers:
        tree = "each row is one message of a tree: write whole dialogues, as `messages`"
        hint = tree if "message_tree_id" in row.value else ""
        raise RowProblem("there is no answer to learn" + _seen(sample), hint=hint)
    return [Dialogue(row.id, sample.prompt + sample.answers[0], sample.extras)]


def preferences_of(row: Row, sample: Sample) -> list[Preference]:
    """Answers to compare."""
    if sample.good is not None:
        raise RowProblem(
            "the row is one answer with a label, and answers are compared here; "
            "the stage `dpo` with `loss: kto` learns from labels"
        )
    if len(sample.answers) < 2:
        said = "there are no two answers to compare" + _seen(sample)
        raise RowProblem(said, hint=_unranked(row))
    found = Preference(
        row.id, sample.prompt, sample.answers, sample.ranks, sample.margin, sample.extras
    )
    return [found]


def prompts_of(row: Row, sample: Sample) -> list[Prompt]:
    """A prompt, with the whole row."""
    if not sample.prompt:
        raise RowProblem("there is no prompt" + _seen(sample))
    if sample.prompt[-1].role in ("assistant", "system"):
        raise RowProblem(f"the prompt ends with the {sample.prompt[-1].role}'s turn")
    return [Prompt(row.id, sample.prompt, row.value, sample.extras)]


def labelled_of(row: Row, sample: Sample) -> list[Labelled]:
    """An answer with its label; a pair is two."""
    if sample.good is not None and sample.answers:
        only = (row.id, sample.prompt, sample.answers[0], sample.good, sample.extras)
        return [Labelled(*only)]
    if len(sample.answers) != 2:
        hint = "`format: kto` reads a label of 0 or 1" if "label" in row.value else ""
        truths = [name for name, value in row.value.items() if isinstance(value, bool)]
        if truths and not hint:
            hint = f"`columns: {{label: {truths[0]}}}` reads `{truths[0]}` as the label"
        said = "there is neither a labelled answer nor a pair" + _seen(sample)
        raise RowProblem(said, hint=hint)
    both = zip(sample.answers, (True, False), strict=True)
    return [Labelled(row.id, sample.prompt, answer, good, sample.extras) for answer, good in both]


def _texts(row: Row, sample: Sample) -> list[PlainText]:
    if sample.text is None:
        raise RowProblem("there is no column of plain text")
    return [PlainText(row.id, sample.text)]


def language_of(row: Row, sample: Sample) -> list[PlainText | Dialogue]:
    """Plain text, or a dialogue."""
    return [*(_texts(row, sample) if sample.text is not None else dialogues_of(row, sample))]


def _unranked(row: Row) -> str:
    """What would make a ranking of a list of answers that says nothing of which is better."""
    for name in SYNONYMS["answers"]:
        match row.value.get(name):
            case [str(), str(), *_]:
                return f"`format: ranked` takes the list in `{name}` as best first"
    return ""


def _seen(sample: Sample) -> str:
    """What the row is instead, for the message."""
    if sample.text is not None:
        return ": the row is plain text"
    if sample.answers:
        return f": the row is a prompt with {len(sample.answers)} answer(s)"
    return ": the row is a prompt alone, or a dialogue that ends with a question"
