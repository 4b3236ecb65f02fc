"""Calls of functions, under templates that write each family's own notation."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import groupby
from typing import Any

import pytest
from data_files import jsonl, load
from rlhf_trainer.data.encode import (
    encode_dialogue,
    encode_preference,
    encode_prompt,
)
from rlhf_trainer.data.examples import Dialogue, Message
from rlhf_trainer.data.load import load_dialogues, load_preferences, load_prompts
from rlhf_trainer.data.problems import RowProblem
from rlhf_trainer.models.tokenizers import PLAIN_TEMPLATE

TOKENS = ("<|im_start|>", "<|im_end|>", "<|eot|>", "[TOOL_CALLS]", "[/INST]", "<|calls|>")
QUOTED = "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TOLD = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
HERMES = (  # and Qwen: calls are JSON in tags, answers of tools the user's
    f"{TOLD}{{% for m in messages %}}{{% if m.role == 'tool' %}}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    f"{{% else %}}{QUOTED}{{% endif %}}{{% for call in m.tool_calls or [] %}}"
    "{{ '\n' if m.content }}{{ '<tool_call>\n{\"name\": \"' + call.function.name }}"
    "{{ '\", \"arguments\": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}"
    f"{{% endfor %}}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}{ASKS}"
)
LLAMA = (  # one call, with `parameters`; what is said beside it is left out; answers are JSON
    f"{{{{ bos_token }}}}{TOLD}{{% for m in messages %}}"
    "{{ '<|im_start|>' + ('ipython' if m.role == 'tool' else m.role) + '\n\n' }}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('single tool-calls at once') }}{% endif %}"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ (m.tool_calls[0].function.arguments | tojson) + '}' }}"
    "{% elif m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
MISTRAL = (  # tools before the last question alone; ids of nine characters
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'eq', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% if tools and m == asked[-1] %}"
    "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('IDs have length 9') }}{% endif %}"
    "{{ (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']' + eos_token }}{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('IDs have length 9') }}{% endif %}"
    '{{ \'[TOOL_RESULTS] {"content": \' + m.content + \', "call_id": "\' + m.tool_call_id }}'
    "{{ '\"}[/TOOL_RESULTS]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK = (  # arguments are text; no header behind a tool's answer; calls of blank turns alone
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% set ns = namespace(answered=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<U>' + m.content }}{% set ns.answered = false %}"
    "{% elif m.role == 'tool' %}{{ '<out>' + m.content + '</out>' }}{% set ns.answered = true %}"
    "{% else %}{{ '<A>' if not ns.answered }}{% if m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<|calls|>' + c.type + '<sep>' + c.function.name + '\n```json\n' }}"
    "{{ c.function.arguments + '\n```' }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and not ns.answered %}{{ '<A>' }}{% endif %}"
)
XML = (  # as Qwen3-Coder and GLM: a tag for each argument
    f"{TOLD}{{% for m in messages %}}{QUOTED}{{% for call in m.tool_calls or [] %}}"
    "{{ '<function=' + call.function.name + '>' }}"
    "{% for key, value in call.function.arguments.items() %}{{ '<parameter=' + key + '>' }}"
    "{{ value if value is string else (value | tojson) }}{{ '</parameter>' }}{% endfor %}"
    f"{{{{ '</function>' }}}}{{% endfor %}}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}{ASKS}"
)
CHATML = f"{TOLD}{{% for m in messages %}}{QUOTED}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}{ASKS}"

SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {}}}
QUESTION = {"role": "user", "content": "How warm is it?"}
ARGUMENTS = {"city": 'Köln "am" Rhein', "days": 2}
FUNCTION = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_abcdefghijkl", "type": "function", "function": FUNCTION}],
}
RESULT = {"role": "tool", "tool_call_id": "call_abcdefghijkl", "content": '{"warm": "22 °C"}'}
ANSWER = {"role": "assistant", "content": "22 °C."}
ROW = {"messages": [QUESTION, CALLS, RESULT, ANSWER], "tools": [SCHEMA]}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "How warm is it?"},
        {"from": "function_call", "value": json.dumps({**FUNCTION, "arguments": ARGUMENTS})},
        {"from": "observation", "value": '{"warm": "22 °C"}'},
        {"from": "gpt", "value": "22 °C."},
    ],
    "tools": json.dumps([SCHEMA]),
}
SAID = json.dumps(ARGUMENTS, ensure_ascii=False)
TAGGED = f'<tool_call>\n{{"name": "weather", "arguments": {SAID}}}\n</tool_call>'
END, EOS = "<|im_end|>", "<|eos|>"
CASES = {  # template: what counts of the call, what is shown of the answer, what counts of the rest
    "hermes": (HERMES, TAGGED + END, '<tool_response>\n{"warm": "22 °C"}', f"22 °C.{END}"),
    "llama": (
        LLAMA,
        f'{{"name": "weather", "parameters": {SAID}}}<|eot|>',
        r'ipython\n\n"{\"warm\": \"22 °C\"}"'.replace(r"\n", "\n"),
        "22 °C.<|eot|>",
    ),
    "mistral": (
        MISTRAL,
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {SAID}, "id": "#"}}]{EOS}',
        '[TOOL_RESULTS] {"content": {"warm": "22 °C"}, "call_id": "#"}',
        f" 22 °C.{EOS}",
    ),
    "deepseek": (
        DEEPSEEK,
        f"<|calls|>function<sep>weather\n```json\n{SAID}\n```{EOS}",
        '<out>{"warm": "22 °C"}</out>',
        f"22 °C.{EOS}",
    ),
    "xml": (
        XML,
        '<function=weather><parameter=city>Köln "am" Rhein</parameter>'
        f"<parameter=days>2</parameter></function>{END}",
        '<|im_start|>tool\n{"warm": "22 °C"}',
        f"22 °C.{END}",
    ),
    "no notion of calls": (
        CHATML,
        TAGGED + END,
        '<|im_start|>tool\n{"warm": "22 °C"}',
        f"22 °C.{END}",
    ),
    "plain": (
        "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + PLAIN_TEMPLATE,
        f"{TAGGED}{EOS}",
        'tool:\n{"warm": "22 °C"}',
        f"22 °C.{EOS}",
    ),
}


@pytest.fixture
def make(tokenizer: Any) -> Any:
    def with_template(template: str) -> Any:
        own = deepcopy(tokenizer)
        own.add_special_tokens({"extra_special_tokens": [*TOKENS]})
        own.chat_template = template
        return own

    return with_template


def parts(tokenizer: Any, tokens: Any, mask: Any) -> list[tuple[bool, str]]:
    """Runs of tokens that count, and of those that do not."""
    found = groupby(zip(mask, tokens, strict=True), lambda pair: bool(pair[0]))
    return [(counts, tokenizer.decode([token for _, token in run])) for counts, run in found]


def dialogue(row: Any, tmp_path: Any) -> Dialogue:
    found: Dialogue = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [row])).train[0]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", [ROW, SHAREGPT], ids=["openai", "sharegpt"])
def test_calls_are_written_as_the_template_writes_them_and_alone_learnt(
    row: Any, case: str, make: Any, tmp_path: Any
) -> None:
    template, called, told, said = CASES[case]
    tokenizer = make(template)
    encoded = encode_dialogue(tokenizer, dialogue(row, tmp_path), 999)
    _, first, between, last = found = parts(tokenizer, encoded.tokens, encoded.loss_mask)
    assert [counts for counts, _ in found] == [False, True, False, True]
    ids = {text.split('id": "')[1][:9] for text in (first[1], between[1]) if '"id": "' in text}
    assert len(ids) == (case == "mistral")
    for name in ids:  # short ones stand for OpenAI's
        first, between = ((counts, text.replace(name, "#")) for counts, text in (first, between))
    assert (first[1], last[1]) == (called, said)
    assert told in between[1]


@pytest.mark.parametrize("case", CASES)
def test_an_answer_behind_a_tool_has_the_tokens_of_its_prompt_in_every_stage(
    case: str, make: Any, tmp_path: Any
) -> None:
    tokenizer = make(CASES[case][0])
    path = jsonl(tmp_path / "a.jsonl", [ROW])
    whole = encode_dialogue(tokenizer, dialogue(ROW, tmp_path), 999)
    prompt = encode_prompt(tokenizer, load(load_prompts, path).train[0], 999)
    assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
    assert TAGGED in prompt.text  # for people and reward functions


@pytest.mark.parametrize("case", CASES)
def test_a_call_may_be_preferred_to_an_answer(case: str, make: Any, tmp_path: Any) -> None:
    template, called, _, _ = CASES[case]
    tokenizer = make(template)
    row = {"prompt": [QUESTION], "chosen": [CALLS], "rejected": [ANSWER], "tools": [SCHEMA]}
    pair = load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train[0]
    best, worst = encode_preference(tokenizer, pair, 999).answers
    start = called.split('"id"')[0]
    assert tokenizer.decode(best.tokens).startswith(start)
    assert "22 °C." in tokenizer.decode(worst.tokens)


def test_a_call_in_an_earlier_question_is_found_where_tools_are_shown_at_the_last_one(
    make: Any, tmp_path: Any
) -> None:
    tokenizer = make(MISTRAL)
    row = ROW | {"messages": [*ROW["messages"], QUESTION, {**ANSWER, "content": "Warm."}]}
    encoded = encode_dialogue(tokenizer, dialogue(row, tmp_path), 999)
    found = parts(tokenizer, encoded.tokens, encoded.loss_mask)
    assert [text[:12] for counts, text in found if counts] == [
        "[TOOL_CALLS]",
        " 22 °C.<|eos",
        " Warm.<|eos|",
    ]


def test_calls_beside_words_and_of_several_functions(make: Any, tmp_path: Any) -> None:
    calls = [
        {"id": name * 9, "function": {"name": f"f{name}", "arguments": {"x": name}}}
        for name in "ab"
    ]
    answers = [{"role": "tool", "tool_call_id": name * 9, "content": name * 3} for name in "ab"]
    turns = [QUESTION, {"role": "assistant", "content": "Both.", "tool_calls": calls}]
    row = {"messages": [*turns, *answers, ANSWER]}
    tokenizer = make(HERMES)
    encoded = encode_dialogue(tokenizer, dialogue(row, tmp_path), 999)
    said = parts(tokenizer, encoded.tokens, encoded.loss_mask)[1][1]
    assert said.startswith('Both.\n<tool_call>\n{"name": "fa", "arguments": {"x": "a"}}')
    assert said.count("<tool_call>") == 2
    with pytest.raises(RowProblem, match="refuses it: single tool-calls at once"):
        encode_dialogue(make(LLAMA), dialogue(row, tmp_path), 999)
    one = {"messages": [*turns[:1], {**turns[1], "tool_calls": calls[:1]}, answers[0], ANSWER]}
    for template in (LLAMA, DEEPSEEK):  # shows the call or the words
        with pytest.raises(RowProblem, match=r"`fa` in turn 2|does not show turn 2 as it is"):
            encode_dialogue(make(template), dialogue(one, tmp_path), 999)

    crossed = {"messages": [*turns, *reversed(answers), ANSWER]}
    with pytest.raises(RowProblem, match="turn 3 answers another call than the next one"):
        encode_dialogue(tokenizer, dialogue(crossed, tmp_path), 999)
    silent = {"messages": [turns[0], {**turns[1], "content": None}, *reversed(answers), ANSWER]}
    assert encode_dialogue(make(MISTRAL), dialogue(silent, tmp_path), 999)  # which shows ids


def test_what_a_tool_answers_is_not_left_out(make: Any, tmp_path: Any) -> None:
    deaf = HERMES.replace("\n<tool_response>\n' + m.content", "\n'")
    with pytest.raises(RowProblem, match="leaves out what a tool answers in turn 3") as refusal:
        encode_dialogue(make(deaf), dialogue(ROW, tmp_path), 999)
    assert "spec.model.chatTemplate" in refusal.value.hint


def test_arguments_that_the_template_leaves_out_are_refused(make: Any, tmp_path: Any) -> None:
    cut = XML.replace(".items()", ".items() if loop.first and key != 'days'")
    with pytest.raises(RowProblem, match="leaves out the call of `weather` in turn 2"):
        encode_dialogue(make(cut), dialogue(ROW, tmp_path), 999)


def test_an_answer_to_no_call_is_refused(make: Any, tmp_path: Any) -> None:
    row = ROW | {"messages": [QUESTION, CALLS, {**RESULT, "tool_call_id": "other"}, ANSWER]}
    with pytest.raises(RowProblem, match="a tool answers the call 'other', and no turn before it"):
        encode_dialogue(make(HERMES), dialogue(row, tmp_path), 999)


def test_turns_without_calls_are_what_they_were(make: Any) -> None:
    turns = (Message("user", "Q"), Message("assistant", "A"))
    for template, *_ in CASES.values():
        tokenizer = make(template)
        row = encode_dialogue(tokenizer, Dialogue("a:1", turns), 99)
        assert [text.strip()[0] for counts, text in parts(tokenizer, row.tokens, row.loss_mask)
                if counts] == ["A"]  # fmt: skip
