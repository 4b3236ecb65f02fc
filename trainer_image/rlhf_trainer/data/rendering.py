"""Dialogues through the tokenizer's chat template, cut at the borders of what the model says.

A template gives one text. To know which part of it is the assistant's, the dialogue is rendered up
to each of its turns: that rendering (with the generation prompt) is where the turn starts in nearly
all templates. Where it is no prefix of the whole (a template that treats the last turn in its own
way), the turn's text is looked for instead.

What the model says includes the token that ends its turn, and nothing after it: it learns to stop,
a reward model scores there, and generation stops there. Pieces are tokenised one by one, so that a
prompt has the same tokens in training and in generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rlhf_trainer.data.call_style import as_called, messages_of
from rlhf_trainer.data.examples import Extras, Message
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.turns import Turns
from rlhf_trainer.errors import ConfigurationError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LINE: Final = "\n"
"""What a text is put behind that must not get SentencePiece's dummy space before its first word."""

TODAY: Final = date(2024, 7, 26)
"""What templates that write today's date are told, the day of Llama 3's own. By the clock a resumed
run, or a rank on another node, would read other rows, and the stage's hash would not cover them."""

SHOWN_IN_PART: Final = (
    "the template leaves out or rewrites what the assistant says, such as its thoughts: change the "
    "rows, or set spec.model.chatTemplate to a template that shows it"
)


NOT_READ: Final = (
    "leave it out of the rows, or set spec.model.chatTemplate to a template that reads it"
)
NOTHING: Final = Extras()


class Piece(NamedTuple):
    """A part of the rendered text. ``turn`` is the index of the assistant's turn, -1 elsewhere."""

    text: str
    turn: int


class _Span(NamedTuple):
    begin: int
    end: int
    turn: int


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    extras: Extras = NOTHING,
    *,
    asks: bool = False,
) -> str:
    """The template's text. ``asks`` adds the prompt for the assistant's next turn."""
    _refuse_unread(tokenizer, extras)
    messages = messages_of(tokenizer, tuple(turns), bool(extras.tools))
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=[*map(_schema, extras.tools)] or None,
            tokenize=False,
            add_generation_prompt=asks,
            strftime_now=TODAY.strftime,
            **dict(extras.kwargs),
        )
    except Exception as error:  # templates raise whatever their authors like
        line = getattr(error, "lineno", None)  # of jinja2.TemplateSyntaxError
        at = f" (line {line} of it)" if line else ""
        raise RowProblem(f"the chat template refuses it: {first_line(error)}{at}") from None
    return str(text)


def _schema(tool: Any) -> Any:
    """As transformers has it; LLaMA-Factory's rows have the function alone."""
    is_bare = isinstance(tool, dict) and "name" in tool and not tool.keys() & {"type", "function"}
    return {"type": "function", "function": tool} if is_bare else tool


def _refuse_unread(tokenizer: PreTrainedTokenizerBase, extras: Extras) -> None:
    """What is set in a row and stands nowhere in the template would make no difference."""
    read = as_read(tokenizer, extras)
    for name, value in extras.kwargs:
        if value and (name, value) not in read.kwargs:
            raise RowProblem(
                f"`chat_template_kwargs` sets `{name}`, which the chat template does not read",
                hint=NOT_READ,
            )


def as_read(tokenizer: PreTrainedTokenizerBase, extras: Extras) -> Extras:
    """Without what the template does not read: it may be set for another model's."""
    if not extras.kwargs:
        return extras
    template = str(tokenizer.get_chat_template(tools=list(extras.tools) or None))
    words = {*re.findall(r"\w+", template)}
    return extras._replace(kwargs=tuple(item for item in extras.kwargs if item[0] in words))


def pieces_of(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, extras: Extras = NOTHING
) -> list[Piece]:
    """The rendered dialogue in pieces: what is shown and what the assistant says, in turn.

    The dialogue must end with an assistant's turn; the text ends with its end-of-turn token.
    """
    turns = as_called(tokenizer, turns, bool(extras.tools))
    dialogue = _Dialogue.of(tokenizer, turns, extras)
    text, found = dialogue.text, _spans(dialogue)
    spans = [_ended(tokenizer, text, span) for span in found]
    pieces: list[Piece] = []
    cursor = 0
    for span in spans:
        pieces += [
            Piece(text[cursor : span.begin], -1),
            Piece(text[span.begin : span.end], span.turn),
        ]
        cursor = span.end
    if not _ends_with_special(tokenizer, pieces[-1].text):
        said = pieces[-1].text
        if not turns[-1].content.endswith("\n"):
            said = said.removesuffix("\n")  # it parts turns, and none follows
        pieces[-1] = Piece(said + str(tokenizer.eos_token), pieces[-1].turn)
    return [piece for piece in pieces if piece.text]


def unended(tokenizer: PreTrainedTokenizerBase, piece: Piece, content: str) -> Piece:
    """What the assistant says, without what ends its turn: of an answer that was cut for length."""
    text = piece.text
    shown = next((words for words in (content, content.strip()) if words and words in text), None)
    if shown is not None:
        return piece._replace(text=text[: text.rindex(shown) + len(shown)])
    end = next((token for token in _special_tokens(tokenizer) if text.endswith(token)), "")
    return piece._replace(text=text.removesuffix(end))


class Texts(NamedTuple):
    """Pieces of a row that are to be tokenised, and what is shown before them."""

    pieces: Sequence[str]
    shown: str = ""  # read again only where it may matter
    is_plain: bool = False  # no template wrote the special tokens: the tokenizer adds its own


def tokenised(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[list[int]]:
    """Token ids of each piece. No special tokens are added: the template wrote them."""
    return tokenised_together(tokenizer, [Texts([piece.text for piece in pieces])])[0]


def tokenised_together(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Texts]
) -> list[list[list[int]]]:
    """Token ids of each piece of many rows: tokenizers' Rust takes a list to all CPUs."""
    plain = iter(_ids(tokenizer, [t for each in asked if each.is_plain for t in each.pieces], True))
    shown = [each for each in asked if not each.is_plain]
    if _reads_whole(tokenizer):
        whole = [Texts([each.shown, *each.pieces]) for each in shown]
        rest = (ids[1:] for ids in _tokenised_whole(tokenizer, whole))
    else:
        ids = iter(_ids(tokenizer, [text for each in shown for text in each.pieces], False))
        rest = ([*islice(ids, len(each.pieces))] for each in shown)
    return [[*islice(plain, len(each.pieces))] if each.is_plain else next(rest) for each in asked]


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], adds_special: bool
) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=adds_special,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    return found


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens at which generation stops: EOS, and the token that ends a turn in the template.
    ConfigurationError where that cannot show a question with its answer."""
    turns = (Message("user", "a"), Message("assistant", "b"))
    try:
        pieces = pieces_of(tokenizer, turns)
    except RowProblem as problem:
        raise ConfigurationError(
            f"no question with its answer can be shown to the model: {problem}; mend "
            "`chatTemplate`, or leave it out and use the tokenizer's own"
        ) from None
    last = tokenised(tokenizer, pieces)[-1][-1]
    return sorted({int(tokenizer.eos_token_id), last})


def _end_of_question(asked: str, question: Message) -> str:
    """The last question, and all that follows it in what asks for an answer."""
    words = question.content.strip()
    return asked[max(asked.rfind(words), 0) :] if words else asked


class _Dialogue(NamedTuple):
    """Turns, and the text of all of them."""

    tokenizer: PreTrainedTokenizerBase
    turns: Turns
    extras: Extras
    text: str
    asked: str | None  # what asks for the last turn; None where that stands alone

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, turns: Turns, extras: Extras) -> _Dialogue:
        """With the last answer behind what asks for it, as in generation. Some templates write that
        in another way once the answer is there: Mistral's without the system message, R1's without
        the start of a thought."""
        text = rendered(tokenizer, turns, extras)
        if len(turns) == 1:  # some templates cannot render nothing
            return cls(tokenizer, turns, extras, text, None)
        asked = rendered(tokenizer, turns[:-1], extras, asks=True)
        if not text.startswith(asked):
            end = _end_of_question(asked, turns[-2])
            said = turns[-1].content or "".join(call.name for call in turns[-1].calls[:1])
            words = text.rfind(said if said in text else said.strip())
            at = text.rfind(end, 0, max(words, 0))
            begin = words if at < 0 else at + len(end)
            text = text if begin < 0 else asked + text[begin:]
        return cls(tokenizer, turns, extras, text, asked)

    def until(self, index: int) -> str:
        """What the template makes of the turns before this one alone."""
        return rendered(self.tokenizer, self.turns[:index], self.extras)

    def asks_for(self, index: int) -> str | None:
        """The same, with what asks for this turn; None where nothing is before it."""
        if index in (0, len(self.turns) - 1):
            return self.asked if index else None
        return rendered(self.tokenizer, self.turns[:index], self.extras, asks=True)


def _spans(dialogue: _Dialogue) -> list[_Span]:
    """Where each of the assistant's turns begins and ends in the whole text."""
    spans: list[_Span] = []
    cursor = 0
    for index, turn in enumerate(dialogue.turns):
        if turn.role != "assistant":
            continue
        asked = dialogue.asks_for(index)
        span = _by_prefix(dialogue, index, asked, cursor)
        if span is None:
            span = _by_content(dialogue, index, asked, cursor)
        if span is None and (turn.trained or index == len(dialogue.turns) - 1):
            raise not_shown(index)
        if span is None:
            continue  # it is shown in part, as in generation
        spans.append(span)
        cursor = span.end
    return spans


def _by_prefix(dialogue: _Dialogue, index: int, asked: str | None, cursor: int) -> _Span | None:
    """From the end of what asks for the turn to the end of a dialogue that ends with it."""
    if asked is None:
        return None
    text, is_last = dialogue.text, index == len(dialogue.turns) - 1
    after = text if is_last else dialogue.until(index + 1)
    if len(asked) < cursor or not text.startswith(asked) or not text.startswith(after):
        return None
    return _Span(len(asked), len(after), index) if len(after) > len(asked) else None


def _behind_the_question(dialogue: _Dialogue, index: int, asked: str | None, cursor: int) -> int:
    """Where an answer may be looked for: its words may stand in the question, too. What is rendered
    before it tells, or how it asks, or else the words of the turns since the last answer, which
    ends at cursor."""
    turns, text = dialogue.turns, dialogue.text
    if asked is not None:
        before = asked if text.startswith(asked) else dialogue.until(index)
        if text.startswith(before):
            return max(cursor, len(before))
        end = _end_of_question(asked, turns[index - 1])
        if (at := text.find(end, cursor)) >= 0:
            return at + len(end)
    first = next((i for i in range(index, 0, -1) if turns[i - 1].role == "assistant"), 0)
    for turn in turns[first:index]:
        at = text.find(turn.content.strip(), cursor)
        cursor = cursor if at < 0 else at + len(turn.content.strip())
    return cursor


def _by_content(dialogue: _Dialogue, index: int, asked: str | None, cursor: int) -> _Span | None:
    """From its words, or the white space between them and what asks, to what ends the turn."""
    text, content = dialogue.text, dialogue.turns[index].content
    if dialogue.turns[index].calls:  # which no two templates write alike
        whole = dialogue.until(index + 1)
        if asked is None or not whole.startswith(asked):
            return None
        content = whole[len(asked) :]
    first = _behind_the_question(dialogue, index, asked, cursor)
    content = content if content in text[first:] else content.strip()
    begin = text.find(content, first)
    if begin < 0:
        return None
    end = begin + len(content)
    if asked is not None and text[first:begin].isspace():
        is_asked = text[:first].endswith(_end_of_question(asked, dialogue.turns[index - 1]))
        begin = first if is_asked else begin
    closing = _special_pattern(dialogue.tokenizer).match(text, end)
    return _Span(begin, closing.end() if closing else end, index)


def not_shown(turn: int) -> RowProblem:
    """Why a dialogue cannot be learnt some of whose answers the template leaves out."""
    said = f"the chat template does not show turn {turn + 1} as it is"
    return RowProblem(said, hint=SHOWN_IN_PART)


def _ended(tokenizer: PreTrainedTokenizerBase, text: str, span: _Span) -> _Span:
    """Without the newline that many templates put behind the end-of-turn token."""
    said = text[span.begin : span.end].rstrip()
    if _ends_with_special(tokenizer, said):
        return span._replace(end=span.begin + len(said))
    return span


@lru_cache(maxsize=16)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = {*tokenizer.all_special_tokens, *added} - {""}
    return tuple(sorted(found, key=len, reverse=True))


@lru_cache(maxsize=16)
def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, _special_tokens(tokenizer))) + ")")


def _ends_with_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return text.endswith(_special_tokens(tokenizer))


def _reads_whole(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(_adds_space(tokenizer) and tokenizer.is_fast)


@lru_cache(maxsize=16)
def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets a space before its first word (SentencePiece's dummy prefix): then
    pieces tokenised one by one would not be the text."""
    ids = tokenizer("x", add_special_tokens=False)["input_ids"]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[:1])[0]).startswith(("▁", "Ġ"))


def _tokenised_whole(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Texts]
) -> list[list[list[int]]]:
    """The whole text of each at once, so that no piece gets a space of its own. Where a token would
    lie across the border of two pieces, the text is parted there: a prompt ends at such a
    border."""
    if not asked:
        return []
    found = tokenizer(
        [each.shown + "".join(each.pieces) for each in asked],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    tokens = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [
        _parted(tokenizer, each, [*zip(*both, strict=True)])
        for each, both in zip(asked, tokens, strict=True)
    ]


def _parted(
    tokenizer: PreTrainedTokenizerBase, asked: Texts, found: Sequence[tuple[int, tuple[int, int]]]
) -> list[list[int]]:
    """Token ids of each piece, of tokens with their places in the whole text; those of what is
    shown before are left out."""
    borders = list(accumulate(map(len, asked.pieces), initial=len(asked.shown)))
    tokens: list[list[int]] = [[] for _ in asked.pieces]
    index = 0
    for token, (begin, end) in found:
        if end <= borders[0]:
            continue
        while end > borders[index + 1]:
            index += 1
        if begin < borders[index] and index > 0:
            parts = Texts(asked.pieces[:index], asked.shown), Texts(asked.pieces[index:], LINE)
            before, after = _tokenised_whole(tokenizer, parts)
            return before + after
        tokens[index].append(token)
    return tokens
