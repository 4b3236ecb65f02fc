"""Examples to tokens, each no longer than a stage allows.

What is too long is refused, or cut on request (`overlong: truncate`): a dialogue loses its end; a
preference first loses the start of its prompt, but its answers never get more than three quarters
of the length; a prompt loses its start. A first BOS token always stays.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from rlhf_api.data import DataSource

from rlhf_trainer.data.call_style import as_called
from rlhf_trainer.data.examples import (
    Dialogue,
    Extras,
    Labelled,
    PlainText,
    Preference,
    Prompt,
)
from rlhf_trainer.data.left_out import (
    refuse_left_out,
    refuse_unless_shown,
    refuse_without_tools,
)
from rlhf_trainer.data.load import Loaded
from rlhf_trainer.data.problems import BadRow, RowProblem, settle
from rlhf_trainer.data.rendering import Texts, pieces_of, rendered
from rlhf_trainer.data.together import Encoder, Steps, together
from rlhf_trainer.data.turns import Turns, marked
from rlhf_trainer.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["refuse", "truncate"]
ANSWER_SHARE = 3 / 4
"""Share of the length that answers may take from their prompt."""
CHUNK: Final = 1000
"""Rows whose texts the tokenizer gets at once."""
TOLD_EVERY: Final = 50_000
"""Rows, which take one CPU a minute; then a line of the log says how far it is."""

Example = Dialogue | Preference | Prompt | Labelled | PlainText
T = TypeVar("T", bound=Example)
E = TypeVar("E")
Keep = Callable[[Iterable[E]], Sequence[E]]
log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """A row for language modelling; ``loss_mask[t]`` says whether token t counts in the loss."""

    id: str
    tokens: Sequence[int]
    loss_mask: Sequence[int]  # 1 counts


class Answer(NamedTuple):
    """Tokens that follow a prompt, end-of-turn token included.

    ``mask`` is 1 for the assistant's own: all, but where a dialogue goes on for several turns.
    """

    tokens: Sequence[int]
    mask: Sequence[int]


class EncodedPreference(NamedTuple):
    """A prompt and its answers, best first; equal ranks are ties."""

    id: str
    prompt: Sequence[int]
    answers: list[Answer]
    ranks: tuple[int, ...]
    margin: float


class EncodedPrompt(NamedTuple):
    """A prompt that ends where the model is to answer. ``text`` is the question for people and for
    reward functions."""

    asked: Prompt
    tokens: Sequence[int]
    text: str

    @property
    def id(self) -> str:
        """``file:line``."""
        return self.asked.id


class EncodedLabelled(NamedTuple):
    """A prompt and an answer that was called good or bad."""

    id: str
    prompt: Sequence[int]
    answer: Answer
    good: bool


@Encoder
def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    dialogue: Dialogue,
    max_length: int,
    train_on: Literal["answers", "all"] = "answers",
    overlong: Overlong = "refuse",
) -> Steps[Encoded]:
    """A dialogue with the loss on the assistant's turns, or on all. Raises RowProblem."""
    turns = as_called(tokenizer, dialogue.messages, bool(dialogue.extras.tools))
    pieces = pieces_of(tokenizer, turns, dialogue.extras)
    refuse_unless_shown(pieces, turns)
    refuse_without_tools(tokenizer, turns, dialogue.extras)
    tokens: list[int] = []
    mask: list[bool] = []
    found = yield Texts([piece.text for piece in pieces])
    for piece, ids in zip(pieces, found, strict=True):
        said = piece.turn >= 0 and turns[piece.turn].trained
        tokens += ids
        mask += [said or train_on == "all"] * len(ids)
    if len(tokens) > max_length:
        _refuse_unless(overlong, len(tokens), max_length)
        tokens, mask = tokens[:max_length], mask[:max_length]
    if not any(mask[1:]):
        raise RowProblem(f"no answer is left within {max_length} tokens")
    return Encoded(dialogue.id, tokens, mask)


@Encoder
def encode_preference(
    tokenizer: PreTrainedTokenizerBase,
    preference: Preference,
    max_length: int,
    overlong: Overlong = "refuse",
) -> Steps[EncodedPreference]:
    """A prompt and its answers. Raises RowProblem, also where two answers have the same tokens."""
    prompt, answers = yield from _answered(
        tokenizer, preference.prompt, preference.answers, preference.extras, max_length, overlong
    )
    if all(answer.tokens == answers[0].tokens for answer in answers[1:]):
        raise RowProblem("all answers have the same tokens")
    return EncodedPreference(preference.id, prompt, answers, preference.ranks, preference.margin)


@Encoder
def encode_labelled(
    tokenizer: PreTrainedTokenizerBase,
    labelled: Labelled,
    max_length: int,
    overlong: Overlong = "refuse",
) -> Steps[EncodedLabelled]:
    """A prompt, its answer and the label. Raises RowProblem."""
    prompt, answers = yield from _answered(
        tokenizer, labelled.prompt, (labelled.answer,), labelled.extras, max_length, overlong
    )
    return EncodedLabelled(labelled.id, prompt, answers[0], labelled.good)


@Encoder
def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    max_length: int,
    overlong: Overlong = "refuse",
) -> Steps[EncodedPrompt]:
    """A prompt with the template's generation prompt at its end. Raises RowProblem."""
    tokens = yield from _prompt_tokens(tokenizer, prompt.messages, prompt.extras)
    if len(tokens) > max_length:
        _refuse_unless(overlong, len(tokens), max_length)
        tokens = _without_start(tokenizer, tokens, max_length)
    return EncodedPrompt(prompt, tokens, asked_text(prompt.messages))


@Encoder
def encode_text(
    tokenizer: PreTrainedTokenizerBase,
    plain: PlainText,
    max_length: int,
    overlong: Overlong = "refuse",
) -> Steps[Encoded]:
    """Plain text with BOS where the tokenizer has the habit, and EOS; all of it counts."""
    (tokens,) = yield Texts([plain.text], is_plain=True)
    if tokens[-1:] != [tokenizer.eos_token_id]:
        tokens = [*tokens, int(tokenizer.eos_token_id)]
    if len(tokens) > max_length:
        _refuse_unless(overlong, len(tokens), max_length)
        tokens = tokens[:max_length]
    return Encoded(plain.id, tokens, [True] * len(tokens))


@Encoder
def encode_language(
    tokenizer: PreTrainedTokenizerBase,
    row: PlainText | Dialogue,
    max_length: int,
    overlong: Overlong = "refuse",
) -> Steps[Encoded]:
    """Plain text, or a dialogue with the loss on its answers. Raises RowProblem."""
    if isinstance(row, PlainText):
        return (yield from encode_text.steps(tokenizer, row, max_length, overlong))
    return (yield from encode_dialogue.steps(tokenizer, row, max_length, overlong=overlong))


def encode_all(
    loaded: Loaded[T],
    steps: Callable[[T], Steps[E]],
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    keep: Keep[E] = list,
) -> Loaded[E]:
    """Every example encoded; what cannot be is refused or left out as the source says. `keep` takes
    them one by one, those to train on first, and has them from then on.

    Raises BadData with file, line and reason.
    """
    bad = list(loaded.skipped)
    train = keep(_encoded(loaded.train, steps, bad, tokenizer))
    heldout = keep(_encoded(loaded.heldout, steps, bad, tokenizer))
    total = len(loaded.train) + len(loaded.heldout) + len(loaded.skipped)
    settle(source, bad, total)
    if not train:
        raise BadData(f"{source.source}: no row can be used")
    return Loaded(train, heldout, bad, loaded.unread, loaded.warnings)


def largest_token(row: Any) -> int:
    """Of a row, whatever kind of row it is; 0 of one that has none, or is not encoded."""
    parts: list[Sequence[int]] = []
    match row:
        case Encoded() | EncodedPrompt():
            parts = [row.tokens]
        case EncodedPreference():
            parts = [row.prompt, *(answer.tokens for answer in row.answers)]
        case EncodedLabelled():
            parts = [row.prompt, row.answer.tokens]
    return max((max(part, default=0) for part in parts), default=0)


def asked_text(turns: Turns) -> str:
    """The question in plain words: the user's one turn, or the turns with their roles."""
    told = [turn for turn in turns if turn.role != "system"]
    if len(told) == 1:
        return told[0].content
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in told)


def _encoded(
    examples: Sequence[T],
    steps: Callable[[T], Steps[E]],
    bad: list[BadRow],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[E]:
    done, rest = 0, iter(examples)
    while chunk := [*islice(rest, CHUNK)]:
        for example, row in zip(chunk, together(tokenizer, map(steps, chunk)), strict=True):
            if isinstance(row, RowProblem):
                file, _, line = example.id.rpartition(":")
                bad.append(BadRow(file, int(line), str(row), row.hint))
            else:
                yield compact(row)
        done += len(chunk)
        if done % TOLD_EVERY == 0:
            log.info("%d of %d rows are encoded", done, len(examples))


def compact(row: E) -> E:
    """The same row in a tenth of the memory, as each rank holds all rows: a token takes 4 bytes and
    its mask 1. A tokenizer makes an object of each, which with its place in a list takes 40; and
    the garbage collector looks at all of them.
    """
    match row:
        case Encoded():
            return row._replace(tokens=array("i", row.tokens), loss_mask=bytes(row.loss_mask))
        case EncodedPreference():
            answers = [compact(answer) for answer in row.answers]
            return row._replace(prompt=array("i", row.prompt), answers=answers)
        case EncodedPrompt():
            return row._replace(tokens=array("i", row.tokens))
        case EncodedLabelled():
            return row._replace(prompt=array("i", row.prompt), answer=compact(row.answer))
        case Answer():
            return row._replace(tokens=array("i", row.tokens), mask=bytes(row.mask))
    return row


def _answered(
    tokenizer: PreTrainedTokenizerBase,
    asked: Turns,
    said: Sequence[Turns],
    extras: Extras,
    max_length: int,
    overlong: Overlong,
) -> Steps[tuple[list[int], list[Answer]]]:
    """Tokens of a prompt, and of each of its answers."""
    prompt = yield from _prompt_tokens(tokenizer, asked, extras)
    answers: list[Answer] = []
    for turns in said:
        answers.append((yield from _answer(tokenizer, asked, turns, extras)))
    longest = max(len(answer.tokens) for answer in answers)
    if len(prompt) + longest > max_length:
        _refuse_unless(overlong, len(prompt) + longest, max_length)
        room = max(max_length - len(prompt), min(longest, int(ANSWER_SHARE * max_length)))
        answers = [Answer(tokens[:room], mask[:room]) for tokens, mask in answers]
        prompt = _without_start(tokenizer, prompt, max_length - min(room, longest))
    return prompt, answers


def _answer(
    tokenizer: PreTrainedTokenizerBase, asked: Turns, said: Turns, extras: Extras
) -> Steps[Answer]:
    """What follows the prompt. The prompt's own assistant turns count as shown."""
    both = (*marked(asked, trained=False), *marked(said, trained=True))
    turns = as_called(tokenizer, both, bool(extras.tools))
    pieces = pieces_of(tokenizer, turns, extras)
    refuse_unless_shown(pieces, turns)
    first = next(i for i, piece in enumerate(pieces) if piece.turn == len(asked))
    shown = "".join(piece.text for piece in pieces[:first])
    ids = yield Texts([piece.text for piece in pieces[first:]], shown)
    tokens: list[int] = []
    mask: list[bool] = []
    for piece, part in zip(pieces[first:], ids, strict=True):
        tokens += part
        mask += [piece.turn >= 0] * len(part)
    return Answer(tokens, mask)


def _prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, extras: Extras
) -> Steps[list[int]]:
    turns = as_called(tokenizer, turns, bool(extras.tools))
    text = rendered(tokenizer, turns, extras, asks=True)
    refuse_left_out(text, turns)
    refuse_without_tools(tokenizer, turns, extras)
    (tokens,) = yield Texts([text])
    return tokens


def _without_start(tokenizer: PreTrainedTokenizerBase, tokens: list[int], length: int) -> list[int]:
    """The last tokens, and BOS before them where it was."""
    has_bos = tokens[0] == tokenizer.bos_token_id
    kept = tokens[-(length - has_bos) :] if length > has_bos else []
    return tokens[:1] + kept if has_bos else kept


def _refuse_unless(overlong: Overlong, length: int, max_length: int) -> None:
    if overlong == "refuse":
        raise RowProblem(
            f"{length} tokens, and {max_length} are allowed",
            hint="too long: raise maxLength, or PPO's rollout.maxPromptLength, or set "
            "`overlong: truncate` under `data`",
        )
