"""Dialogues to tokens: what counts in the loss, under the chat templates that models really use."""

from __future__ import annotations

import sys
from copy import deepcopy
from datetime import datetime
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
from data_files import jsonl, load
from rlhf_api.data import DataSource
from rlhf_trainer.data import load as load_module
from rlhf_trainer.data.encode import (
    encode_all,
    encode_dialogue,
    encode_labelled,
    encode_preference,
    encode_prompt,
    encode_text,
)
from rlhf_trainer.data.examples import (
    Dialogue,
    Extras,
    Labelled,
    Message,
    PlainText,
    Preference,
    Prompt,
)
from rlhf_trainer.data.load import Loaded, load_dialogues
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.data.rendering import end_token_ids
from rlhf_trainer.data.together import together
from rlhf_trainer.errors import BadData
from rlhf_trainer.models.tokenizers import PLAIN_TEMPLATE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ ' [INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_3 = (  # and Nemo: the last turn alone is told the system message, if it is a question
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}"
    "{{ m['content'] + '[/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKING = (  # as Qwen3: an empty thought in the last answer, none in earlier ones
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
OTHER_HEADER = (  # the generation prompt is not how a turn begins
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'NOW:' }}{% endif %}"
)

END = "<|eos|>"
CASES = {  # template: (what counts of two turns, whole text of a prompt)
    "chatml": (CHATML, ["你好 👩‍🔬!<|im_end|>", "A2<|im_end|>"], "<|im_start|>assistant\n"),
    "llama3": (LLAMA3, ["你好 👩‍🔬!<|eot|>", "A2<|eot|>"], "<|start|>assistant<|end|>\n\n"),
    "mistral": (MISTRAL, [f" 你好 👩‍🔬!{END}", f" A2{END}"], " [/INST]"),
    "thinking": (
        THINKING,
        ["你好 👩‍🔬!<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"],
        "<|im_start|>assistant\n",
    ),
    "plain": (PLAIN_TEMPLATE, None, None),
    "bare": (BARE, ["你好 👩‍🔬!\n", f"A2{END}"], "assistant: "),
    "other header": (OTHER_HEADER, [f"你好 👩‍🔬!{END}", f"A2{END}"], "NOW:"),
}
TURNS = (
    Message("user", "Q1"),
    Message("assistant", "你好 👩‍🔬!"),
    Message("user", "Q2"),
    Message("assistant", "A2"),
)


@pytest.fixture
def make(tokenizer: Any) -> Any:
    """The tiny tokenizer with a template and the special tokens of all of them."""

    def with_template(template: str) -> Any:
        own = deepcopy(tokenizer)
        own.add_special_tokens(
            {
                "extra_special_tokens": [
                    "<|im_start|>",
                    "<|im_end|>",
                    "<|start|>",
                    "<|end|>",
                    "<|eot|>",
                ]
            }
        )
        own.chat_template = template
        return own

    return with_template


def runs(tokenizer: Any, tokens: list[int], mask: list[bool]) -> list[str]:
    """The text of each run of tokens that count."""
    found: list[list[int]] = []
    before = False
    for token, counts in zip(tokens, mask, strict=True):
        if counts and not before:
            found.append([])
        if counts:
            found[-1].append(token)
        before = counts
    return [tokenizer.decode(part) for part in found]


@pytest.mark.parametrize("case", CASES)
def test_each_answer_counts_with_its_end_and_nothing_else(case: str, make: Any) -> None:
    template, said, _ = CASES[case]
    tokenizer = make(template)
    row = encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)
    found = runs(tokenizer, row.tokens, row.loss_mask)
    if said is None:  # whatever the plain template is like: the answer, closed by EOS
        assert [text.strip() for text in found] == [f"你好 👩‍🔬!{END}", f"A2{END}"]
    else:
        assert found == said
    assert row.loss_mask[-1]  # and nothing follows the last answer


CUT_ELSEWHERE = (  # what stands before an answer is another text once the answer is there
    "{{ '#' + (messages | length | string) + ' ' }}" + CHATML
)


@pytest.mark.parametrize("template", [CUT_ELSEWHERE, *(case[0] for case in CASES.values())])
def test_an_answer_whose_words_stand_in_the_question_is_told_from_it(
    template: str, make: Any
) -> None:
    tokenizer = make(template)
    said = (("user", "yes"), ("assistant", "yes"), ("user", "yes or yes"), ("assistant", "yes"))
    row = encode_dialogue(tokenizer, Dialogue("a:1", tuple(Message(*turn) for turn in said)), 999)
    words: list[tuple[bool, int]] = []
    for counts, part in groupby(zip(row.loss_mask, row.tokens, strict=True), lambda pair: pair[0]):
        text = tokenizer.decode([token for _, token in part])
        words.append((counts, text.count("yes")))
    assert words == [(False, 1), (True, 1), (False, 2), (True, 1)]


@pytest.mark.parametrize("case", CASES)
def test_tokens_spell_the_template_with_one_bos_at_most(case: str, make: Any) -> None:
    tokenizer = make(CASES[case][0])
    row = encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)
    shown = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    whole = tokenizer.apply_chat_template(shown, tokenize=False)
    if case == "other header":  # the last answer stands behind what asks for it
        asked = tokenizer.apply_chat_template(
            shown[:-1], tokenize=False, add_generation_prompt=True
        )
        whole = asked + f"A2{END}"
    assert tokenizer.decode(row.tokens).removesuffix(END) == whole.rstrip("\n").removesuffix(END)
    assert row.tokens.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_has_the_same_tokens_in_training_and_in_generation(case: str, make: Any) -> None:
    template, _, opening = CASES[case]
    tokenizer = make(template)
    prompt = encode_prompt(tokenizer, Prompt("a:1", TURNS[:3], {}), 999)
    if opening is not None:
        assert tokenizer.decode(prompt.tokens).endswith(opening)
    row = encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)
    assert row.tokens[: len(prompt.tokens)] == prompt.tokens
    assert row.loss_mask[len(prompt.tokens) - 1 : len(prompt.tokens) + 1] == [False, True]


def test_an_answer_keeps_its_first_newline_behind_another_header(make: Any) -> None:
    tokenizer = make(OTHER_HEADER)
    row = encode_dialogue(tokenizer, Dialogue("a:1", (TURNS[0], Message("assistant", "\nA1"))), 999)
    assert runs(tokenizer, row.tokens, row.loss_mask) == [f"\nA1{END}"]


@pytest.mark.parametrize("case", CASES)
def test_generation_stops_at_the_token_that_answers_end_with(case: str, make: Any) -> None:
    tokenizer = make(CASES[case][0])
    row = encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)
    assert row.tokens[-1] in end_token_ids(tokenizer)
    assert tokenizer.eos_token_id in end_token_ids(tokenizer)


def test_a_newline_at_the_border_is_not_merged_into_the_answer(make: Any) -> None:
    """A tokenizer with a token for two newlines would hide the border between prompt and answer."""
    tokenizer = make(CHATML)
    tokenizer.add_tokens(["\n\n"])
    dialogue = Dialogue("a:1", (Message("user", "Q"), Message("assistant", "\nA")))
    row = encode_dialogue(tokenizer, dialogue, 999)
    prompt = encode_prompt(tokenizer, Prompt("a:1", dialogue.messages[:1], {}), 999)
    assert row.tokens[: len(prompt.tokens)] == prompt.tokens
    assert runs(tokenizer, row.tokens, row.loss_mask) == ["\nA<|im_end|>"]


def test_a_tokenizer_that_puts_a_space_before_words_keeps_the_text() -> None:
    """SentencePiece's dummy prefix: pieces tokenised one by one would each get a space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "▁", "▁[INST]", "▁q", "▁[/INST]", "▁a", "▁x"]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = MISTRAL.replace("' [INST] '", "'[INST] '")
    dialogue = Dialogue("a:1", (Message("user", "q"), Message("assistant", "a")))
    row = encode_dialogue(tokenizer, dialogue, 99)
    spelled = tokenizer.convert_ids_to_tokens(row.tokens)
    assert spelled == ["<s>", "▁[INST]", "▁q", "▁[/INST]", "▁a", "</s>"]
    assert row.loss_mask == [False] * 4 + [True] * 2


def test_all_tokens_count_on_request_and_turns_of_weight_0_do_not(make: Any) -> None:
    tokenizer = make(CHATML)
    turns = (TURNS[0], TURNS[1]._replace(trained=False), *TURNS[2:])
    row = encode_dialogue(tokenizer, Dialogue("a:1", turns), 999)
    assert runs(tokenizer, row.tokens, row.loss_mask) == ["A2<|im_end|>"]
    assert all(encode_dialogue(tokenizer, Dialogue("a:1", turns), 999, "all").loss_mask)


def test_a_template_that_leaves_out_the_system_message_is_refused_and_not_trained_with(
    make: Any,
) -> None:
    tokenizer = make("{% set messages = messages | rejectattr('role', 'eq', 'system') %}" + CHATML)
    turns = (Message("system", "Be brief."), *TURNS)
    pair = Preference("a:1", turns[:2], ((TURNS[1],), (TURNS[3],)), (0, 1))
    for encode in (
        lambda: encode_dialogue(tokenizer, Dialogue("a:1", turns), 999),
        lambda: encode_prompt(tokenizer, Prompt("a:1", turns[:2], {}), 999),
        lambda: encode_preference(tokenizer, pair, 999),
    ):
        with pytest.raises(RowProblem, match="leaves out the system message") as refusal:
            encode()
        assert "spec.model.chatTemplate" in refusal.value.hint
    assert encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)


TOOLED = "{% for tool in tools or [] %}{{ tool.function | tojson }}{% endfor %}" + CHATML


def test_a_template_that_leaves_out_tools_is_refused_with_the_function(make: Any) -> None:
    turns = (Message("user", "Ask f"), Message("assistant", "f()"))
    pair = Preference("a:1", turns[:1], (turns[1:], (Message("assistant", "No."),)), (0, 1))
    for function, wrapped, template, said in (
        ("f", True, CHATML, "leaves out `f` of the row's tools"),
        ("f", False, CHATML, "leaves out `f` of the row's tools"),
        ("", True, CHATML, "leaves out the row's tools"),
        ("f", True, TOOLED, None),
        ("f", False, TOOLED, None),  # LLaMA-Factory's rows have the function alone
    ):
        schema = {"name": function, "parameters": {}}
        given = Extras(({"type": "function", "function": schema} if wrapped else schema,))
        for encode in (
            lambda t, given=given: encode_dialogue(t, Dialogue("a:1", turns, given), 999),
            lambda t, given=given: encode_prompt(t, Prompt("a:1", turns[:1], {}, given), 999),
            lambda t, given=given: encode_preference(t, pair._replace(extras=given), 999),
        ):
            if said is None:
                encode(make(template))
                continue
            with pytest.raises(RowProblem, match=said) as refusal:
                encode(make(template))
            assert "spec.model.chatTemplate" in refusal.value.hint


def test_a_system_message_that_the_last_question_alone_is_told_is_trained_on(make: Any) -> None:
    tokenizer = make(MISTRAL_3)
    turns = (Message("system", "Be brief."), *TURNS)
    prompt = encode_prompt(tokenizer, Prompt("a:1", turns[:-1], {}), 999).tokens
    assert tokenizer.decode(prompt).endswith("[INST] Be brief.\n\nQ2[/INST]")

    row = encode_dialogue(tokenizer, Dialogue("a:1", turns), 999)
    assert row.tokens[: len(prompt)] == prompt
    assert runs(tokenizer, row.tokens, row.loss_mask) == [f" 你好 👩‍🔬!{END}", f" A2{END}"]
    labelled = encode_labelled(tokenizer, Labelled("a:1", turns[:-1], turns[-1:], True), 999)
    assert [*labelled.prompt, *labelled.answer.tokens] == row.tokens


def test_a_template_that_writes_the_date_makes_the_same_rows_on_any_day(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make("{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML)

    def encoded(day: int) -> tuple[list[int], list[int]]:
        clock = SimpleNamespace(now=lambda: datetime(2026, 11, day))
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        dialogue = encode_dialogue(tokenizer, Dialogue("a:1", TURNS), 999)
        return dialogue.tokens, encode_prompt(tokenizer, Prompt("a:1", TURNS[:1], {}), 999).tokens

    assert encoded(9) == encoded(30)
    assert tokenizer.decode(encoded(30)[1]).startswith("Today Date: 26 Jul 2024\n")


def test_a_template_that_refuses_the_roles_makes_a_bad_row(make: Any) -> None:
    with pytest.raises(RowProblem, match="the chat template refuses it: roles must alternate"):
        encode_dialogue(make(MISTRAL), Dialogue("a:1", (TURNS[0], *TURNS)), 999)


SWITCHED = (  # as Qwen3: what asks for an answer without thoughts holds an empty one
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
    "{% endif %}"
)


def test_rows_tell_their_template_whether_to_think(make: Any) -> None:
    tokenizer = make(SWITCHED)
    asked, said = (Message("user", "Q"),), (Message("assistant", "A"),)
    off = Extras(kwargs=(("enable_thinking", False),))
    shown = f"user: Q{END}assistant: <think></think>"
    prompt = encode_prompt(tokenizer, Prompt("a:1", asked, {}, off), 99)
    assert tokenizer.decode(prompt.tokens) == shown
    row = encode_dialogue(tokenizer, Dialogue("a:1", asked + said, off), 99)
    assert tokenizer.decode(row.tokens) == f"{shown}A{END}"
    pair = Preference("a:1", asked, (said, (Message("assistant", "B"),)), (0, 1), extras=off)
    assert tokenizer.decode(encode_preference(tokenizer, pair, 99).prompt) == shown
    labelled = Labelled("a:1", asked, said, True, off)
    assert tokenizer.decode(encode_labelled(tokenizer, labelled, 99).prompt) == shown


def test_what_rows_set_and_their_template_does_not_read_is_refused(make: Any) -> None:
    asked = (Message("user", "Q"),)
    set_to = {value: Extras(kwargs=(("thinking", value),)) for value in ("", "high")}
    encode_prompt(make(SWITCHED), Prompt("a:1", asked, {}, set_to[""]), 99)
    with pytest.raises(RowProblem, match="sets `thinking`, which the chat template does not read"):
        encode_prompt(make(SWITCHED), Prompt("a:1", asked, {}, set_to["high"]), 99)


def test_an_answer_that_the_template_shows_in_part_is_refused_with_what_to_do(make: Any) -> None:
    tokenizer = make(CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"))
    turns = (TURNS[0], Message("assistant", "<think>so</think>A1"))
    other = (Message("assistant", "A2"),)
    for encode, example in (
        (encode_dialogue, Dialogue("a:1", turns)),
        (encode_preference, Preference("a:1", turns[:1], (turns[1:], other), (0, 1))),
    ):
        with pytest.raises(RowProblem, match="does not show turn 2 as it is") as refused:
            encode(tokenizer, example, 999)
        assert "spec.model.chatTemplate" in refused.value.hint


def test_thoughts_that_a_template_forgets_may_stand_in_turns_that_are_not_learnt(make: Any) -> None:
    remembered = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    tokenizer = make(CHATML.replace("m['content']", remembered))
    thought = Message("assistant", "<think>so</think>A1", trained=False)
    turns = (TURNS[0], thought, TURNS[2], Message("assistant", "<think>then</think>A2"))
    said = "<think>then</think>A2<|im_end|>"
    row = encode_dialogue(tokenizer, Dialogue("a:1", turns), 999)
    assert runs(tokenizer, row.tokens, row.loss_mask) == [said]
    asked = (turns[0], thought._replace(trained=True), turns[2])
    labelled = encode_labelled(tokenizer, Labelled("a:1", asked, turns[3:], True), 999)
    assert tokenizer.decode(labelled.answer.tokens) == said
    with pytest.raises(RowProblem, match="does not show turn 2 as it is"):
        encode_dialogue(tokenizer, Dialogue("a:1", (*asked, turns[3])), 999)


def test_a_template_may_set_white_space_and_begin_thoughts_in_what_asks(make: Any) -> None:
    spaced = CHATML.replace("m['content']", "m['content'].replace('<think>', '<think>\n')")
    turns = (TURNS[0], Message("assistant", "<think>so</think>A1"))
    for template, said in (
        (spaced, "<think>\nso</think>A1<|im_end|>"),
        (spaced.replace("assistant\n'", "assistant\n<think>\n'"), "so</think>A1<|im_end|>"),
    ):
        tokenizer = make(template)
        row = encode_dialogue(tokenizer, Dialogue("a:1", turns), 999)
        assert runs(tokenizer, row.tokens, row.loss_mask) == [said]


def test_preferences_are_prompt_and_answers_with_their_end(make: Any) -> None:
    tokenizer = make(LLAMA3)
    answers = ((Message("assistant", "yes"),), (Message("assistant", "no, 不"),))
    row = encode_preference(tokenizer, Preference("a:1", TURNS[:1], answers, (0, 1), 0.5), 999)
    assert tokenizer.decode(row.prompt).endswith("assistant<|end|>\n\n")
    assert [tokenizer.decode(a.tokens) for a in row.answers] == ["yes<|eot|>", "no, 不<|eot|>"]
    assert all(all(answer.mask) for answer in row.answers)
    assert (row.ranks, row.margin) == ((0, 1), 0.5)


def test_of_a_longer_answer_the_assistants_turns_alone_count(make: Any) -> None:
    tokenizer = make(CHATML)
    answers = (TURNS[1:], (Message("assistant", "x"), *TURNS[2:]))
    row = encode_preference(tokenizer, Preference("a:1", TURNS[:1], answers, (0, 1)), 999)
    first = row.answers[0]
    assert runs(tokenizer, first.tokens, first.mask) == ["你好 👩‍🔬!<|im_end|>", "A2<|im_end|>"]


def test_answers_that_a_template_makes_equal_are_refused(make: Any) -> None:
    answers = ((Message("assistant", "yes"),), (Message("assistant", " yes "),))
    with pytest.raises(RowProblem, match="the same tokens"):
        encode_preference(make(LLAMA3), Preference("a:1", TURNS[:1], answers, (0, 1)), 999)


LONG = Dialogue("a:1", (Message("user", "q" * 30), Message("assistant", "a" * 60)))


def test_over_long_rows_are_refused_with_their_length(tokenizer: Any) -> None:
    whole = encode_dialogue(tokenizer, LONG, 999)
    assert encode_dialogue(tokenizer, LONG, len(whole.tokens)) == whole
    with pytest.raises(RowProblem, match=f"{len(whole.tokens)} tokens, and 50 are allowed"):
        encode_dialogue(tokenizer, LONG, 50)


def test_over_long_dialogues_lose_their_end(tokenizer: Any) -> None:
    whole = encode_dialogue(tokenizer, LONG, 999)
    cut = encode_dialogue(tokenizer, LONG, 50, overlong="truncate")
    assert (cut.tokens, cut.loss_mask) == (whole.tokens[:50], whole.loss_mask[:50])
    with pytest.raises(RowProblem, match="no answer is left"):
        encode_dialogue(tokenizer, LONG, 20, overlong="truncate")


def test_over_long_prompts_lose_their_start_but_bos(tokenizer: Any) -> None:
    prompt = Prompt("a:1", LONG.messages[:1], {"k": 1})
    whole = encode_prompt(tokenizer, prompt, 999)
    assert whole.tokens[0] == tokenizer.bos_token_id
    cut = encode_prompt(tokenizer, prompt, 10, overlong="truncate")
    assert cut.tokens == whole.tokens[:1] + whole.tokens[-9:]
    assert (cut.text, cut.asked.row) == ("q" * 30, {"k": 1})


def test_over_long_preferences_lose_the_prompt_first(tokenizer: Any) -> None:
    answers = ((Message("assistant", "a" * 60),), (Message("assistant", "b"),))
    example = Preference("a:1", LONG.messages[:1], answers, (0, 1))
    whole = encode_preference(tokenizer, example, 999)
    cut = encode_preference(tokenizer, example, 84, "truncate")
    assert [a.tokens for a in cut.answers] == [a.tokens for a in whole.answers]
    kept = 84 - len(whole.answers[0].tokens)
    assert cut.prompt == whole.prompt[:1] + whole.prompt[-(kept - 1) :]
    short = encode_preference(tokenizer, example, 40, "truncate")
    assert [len(a.tokens) for a in short.answers] == [30, len(whole.answers[1].tokens)]
    assert len(short.prompt) == 10


def test_a_prompt_is_read_once_for_all_its_answers(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is most of a preference: of hh-rlhf two thirds."""
    read: list[str] = []
    own = type(tokenizer)
    call = own.__call__
    monkeypatch.setattr(
        own, "__call__", lambda self, t, **kw: read.extend(t) or call(self, t, **kw)
    )
    answers = (Message("assistant", "a"),), (Message("assistant", "b"),)
    encode_preference(tokenizer, Preference("a:1", TURNS[:1], answers, (0, 1)), 999)
    assert sum(TURNS[0].content in text for text in read) == 1


def test_labelled_answers_and_texts(tokenizer: Any) -> None:
    row = encode_labelled(tokenizer, Labelled("a:1", TURNS[:1], (TURNS[3],), False), 999)
    assert (tokenizer.decode(row.answer.tokens), row.good) == (f"A2{END}", False)
    text = encode_text(tokenizer, PlainText("a:1", "Es war 一次"), 999)
    assert tokenizer.decode(text.tokens).endswith(f"Es war 一次{END}")
    assert all(text.loss_mask)


def test_of_all_rows_a_token_takes_four_bytes_and_its_mask_one(tokenizer: Any) -> None:
    """In lists they take 40 and 8, on each of a node's ranks."""

    def encoded(example: Any, encode: Any) -> Any:
        rows = Loaded([example], [], [])
        source = DataSource(source="a")
        steps = partial(encode.steps, tokenizer, max_length=9999)
        (row,) = encode_all(rows, steps, source, tokenizer).train
        return row

    asked, said = (Message("user", "q" * 2000),), (Message("assistant", "a" * 2000),)
    dialogue = Dialogue("a:1", asked + said)
    preference = Preference("a:2", asked, (said, (Message("assistant", "b" * 2000),)), (0, 1))
    row = encoded(dialogue, encode_dialogue)
    prompt = encoded(Prompt("a:3", asked, {}), encode_prompt)
    pair = encoded(preference, encode_preference)
    judged = encoded(Labelled("a:4", asked, said, True), encode_labelled)
    answers = (*pair.answers, judged.answer)
    tokens = [x.tokens for x in (row, prompt, *answers)] + [pair.prompt, judged.prompt]
    masks = [row.loss_mask, *(answer.mask for answer in answers)]
    for parts, size in ((tokens, 4), (masks, 1)):
        assert all(sys.getsizeof(part) <= size * len(part) + 100 for part in parts)
    whole = encode_dialogue(tokenizer, dialogue, 9999)
    assert (list(row.tokens), list(row.loss_mask)) == (whole.tokens, whole.loss_mask)
    both = encode_preference(tokenizer, preference, 9999)
    assert [(list(a.tokens), list(a.mask)) for a in pair.answers] == both.answers


@pytest.mark.parametrize("template", [case[0] for case in CASES.values()], ids=[*CASES])
def test_rows_that_are_encoded_together_are_those_of_each_alone(make: Any, template: str) -> None:
    tokenizer = make(template)
    pair = Preference("a:2", TURNS[:1], (TURNS[1:2], TURNS[3:]), (0, 1))
    unheard = Extras((), (("unheard", True),))
    examples: list[tuple[Any, Any]] = [
        (encode_dialogue, Dialogue("a:1", TURNS)),
        (encode_preference, pair),
        (encode_dialogue, Dialogue("a:3", TURNS, unheard)),
        (encode_text, PlainText("a:4", "x")),
        (encode_prompt, Prompt("a:5", TURNS[:3], {})),
    ]
    found = together(tokenizer, [encode.steps(tokenizer, it, 99) for encode, it in examples])
    for row, (encode, example) in zip(found, examples, strict=True):
        if isinstance(row, RowProblem):
            with pytest.raises(RowProblem) as alone:
                encode(tokenizer, example, 99)
            assert (str(alone.value), alone.value.hint) == (str(row), row.hint)
        else:
            assert encode(tokenizer, example, 99) == row
    assert [isinstance(row, RowProblem) for row in found] == [False, False, True, False, False]


def test_no_more_rows_are_held_than_are_encoded_together(
    tokenizer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a data set of a gigabyte took one and a half in the memory of each process."""
    monkeypatch.setattr("rlhf_trainer.data.encode.CHUNK", 3)
    rows = [{"prompt": f"q{n}", "answer": "a"} for n in range(100)]
    loaded = load(load_dialogues, jsonl(tmp_path / "a.jsonl", rows), eval_fraction=0.2)
    read: list[Any] = []
    understood = load_module._examples
    monkeypatch.setattr(load_module, "_examples", lambda *row: read.append(row) or understood(*row))

    def keep_one(encoded: Any) -> list[Any]:
        read.clear()
        first = next(encoded)
        assert len(read) < 30  # of a hundred
        return [first]

    steps = partial(encode_dialogue.steps, tokenizer, max_length=99)
    encode_all(loaded, steps, DataSource(source="x"), tokenizer, keep_one)
    found = encode_all(loaded, steps, DataSource(source="x"), tokenizer)
    assert [row.id for row in found.heldout] == [row.id for row in loaded.heldout]
    assert len({row.id for row in (*found.train, *found.heldout)}) == len(rows)


def test_what_cannot_be_encoded_is_settled_as_the_source_says(
    tokenizer: Any, tmp_path: Any
) -> None:
    rows = [{"prompt": "q", "answer": "a" * n} for n in (1, 200, 2, 300)]
    loaded = load(load_dialogues, jsonl(tmp_path / "a.jsonl", rows))

    def encoded(source: DataSource) -> Any:
        steps = partial(encode_dialogue.steps, tokenizer, max_length=50)
        return encode_all(loaded, steps, source, tokenizer)

    with pytest.raises(BadData, match=r"a\.jsonl:2: \d+ tokens, and 50 are allowed\n") as refusal:
        encoded(DataSource(source="x"))
    head, what_to_do, *_ = str(refusal.value).splitlines()
    assert head == "x: 2 of 4 rows cannot be used:"
    assert "too long: raise maxLength" in what_to_do
    assert str(refusal.value).count("raise maxLength") == 1
    skipping = DataSource(source="x", on_error="skip", max_skipped_fraction=0.5)
    found = encoded(skipping)
    assert ([row.id for row in found.train], [row.line for row in found.skipped]) == (
        ["a.jsonl:1", "a.jsonl:3"],
        [2, 4],
    )
