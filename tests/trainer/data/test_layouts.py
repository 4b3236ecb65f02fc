"""Layouts of real data sets, each as its authors write it, and what a row of it means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import SEED, jsonl, load, texts, write
from rlhf_api.data import DataSource
from rlhf_trainer.data.load import (
    load_dialogues,
    load_labelled,
    load_language,
    load_preferences,
    load_prompts,
)
from rlhf_trainer.errors import BadData

Q, A, B = "What is 1+1?", "It is 2.", "It is 3."
ASKED = [("user", Q)]
DIALOGUE = [*ASKED, ("assistant", A)]
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is 1+1?\n\nAssistant:"
HH_TURNS = [("user", "Hi"), ("assistant", "Hello."), *ASKED]

DIALOGUES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "prompt/answer": ({"prompt": Q, "answer": A}, DIALOGUE),
    "question/answer (GSM8K)": ({"question": Q, "answer": A}, DIALOGUE),
    "query/response (MetaMath)": ({"query": Q, "response": A, "type": "x"}, DIALOGUE),
    "prompt/completion (TRL)": ({"prompt": Q, "completion": A}, DIALOGUE),
    "prompt/completion as turns (TRL)": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, DIALOGUE),
    "input/target (Firefly)": ({"kind": "math", "input": Q, "target": A}, DIALOGUE),
    "inputs/targets (FLAN)": ({"inputs": Q, "targets": A}, DIALOGUE),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, DIALOGUE),
    "alpaca with text column": (
        {"instruction": Q, "input": "", "output": A, "text": "x"},
        DIALOGUE,
    ),
    "alpaca with input": (
        {"instruction": "Add.", "input": "1, 1", "output": A},
        [("user", "Add.\n1, 1"), ("assistant", A)],
    ),
    "alpaca with system and history": (
        {
            "instruction": Q,
            "input": "",
            "output": A,
            "system": "Be brief.",
            "history": [["Hi", "Hello."]],
        },
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), *DIALOGUE],
    ),
    "dolly": (
        {"instruction": Q, "context": "Maths.", "response": A, "category": "qa"},
        [("user", f"{Q}\nMaths."), ("assistant", A)],
    ),
    "OpenOrca": (
        {"id": "1", "system_prompt": "", "question": Q, "response": A},
        DIALOGUE,
    ),
    "OpenOrca with system": (
        {"id": "1", "system_prompt": "Think.", "question": Q, "response": A},
        [("system", "Think."), *DIALOGUE],
    ),
    "HelpSteer": ({"prompt": Q, "response": A, "helpfulness": 4, "verbosity": 1}, DIALOGUE),
    "messages": ({"messages": TURNS}, DIALOGUE),
    "messages beside their prompt (no_robots)": (
        {"prompt": Q, "prompt_id": "x", "messages": TURNS, "category": "Chat"},
        DIALOGUE,
    ),
    "messages with parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, TURNS[1]]},
        DIALOGUE,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        DIALOGUE,
    ),
    "sharegpt with system column": (
        {
            "system": "S",
            "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        },
        [("system", "S"), *DIALOGUE],
    ),
    "sharegpt with system turn (SlimOrca)": (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": Q, "weight": 0.0},
                {"from": "gpt", "value": A, "weight": 1.0},
            ]
        },
        [("system", "S"), *DIALOGUE],
    ),
    "conversation of input/output (Capybara)": (
        {"source": "x", "conversation": [{"input": Q, "output": A}]},
        DIALOGUE,
    ),
    "list of texts in turn (LIMA)": ({"conversations": [Q, A], "source": "x"}, DIALOGUE),
    "prompt of marked turns (HelpSteer2)": (
        {"prompt": f"H\n<extra_id_1>Assistant\nR\n<extra_id_1>User\n{Q}", "response": A},
        [("user", "H"), ("assistant", "R"), *DIALOGUE],
    ),
    "instruction of turns a line (BELLE)": (
        {"instruction": f"Human:H\nAssistant:R\nHuman:{Q}\nAssistant:", "output": A},
        [("user", "H"), ("assistant", "R"), *DIALOGUE],
    ),
    "solution beside what it comes to (NuminaMath)": (
        {"problem": Q, "answer": "2", "solution": A},
        DIALOGUE,
    ),
    "calls as JSON (xLAM)": (
        {"query": Q, "answers": '[{"name": "sum", "arguments": {}}]', "tools": '[{"name": "sum"}]'},
        [*ASKED, ("assistant", '<tool_call>\n{"name": "sum", "arguments": {}}\n</tool_call>')],
    ),
    "Guanaco transcript": ({"text": f"### Human: {Q}### Assistant: {A}"}, DIALOGUE),
    "chosen of a pair": ({"query": Q, "chosen": A, "rejected": B}, DIALOGUE),
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues_are_recognised(name: str, tmp_path: Path) -> None:
    row, expected = DIALOGUES[name]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [row])).train
    assert texts(found[0].messages) == expected


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues_give_prompts_without_their_answer(name: str, tmp_path: Path) -> None:
    row, expected = DIALOGUES[name]
    found = load(load_prompts, jsonl(tmp_path / "a.jsonl", [row])).train
    assert texts(found[0].messages) == expected[:-1]
    assert found[0].row == row


def test_function_calls_and_observations_are_turns_with_their_tools(tmp_path: Path) -> None:
    tools = [{"name": "sum", "parameters": {}}]
    call = '{"name": "sum", "arguments": {}}'
    row = {
        "conversations": [
            {"from": "human", "value": Q},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": A},
        ],
        "tools": json.dumps(tools),
    }
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [row])).train[0]
    assert texts(found.messages) == [*ASKED, ("assistant", CALL), ("tool", "2"), ("assistant", A)]
    assert found.extras.tools == tuple(tools)


CALL = '<tool_call>\n{"name": "sum", "arguments": {}}\n</tool_call>'
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]}, CALL),
        ({"role": "assistant", "content": B, "tool_calls": [OPENAI_CALL] * 2}, [B, CALL, CALL]),
        ({"role": "assistant", "content": B, "function_call": OPENAI_CALL["function"]}, [B, CALL]),
        ({"from": "function_call", "value": '[{"name": "sum", "arguments": {}}]'}, CALL),
        ({"from": "function_call", "value": "Action: sum"}, "Action: sum"),
    ],
)
def test_calls_are_read_however_they_are_written(turn: Any, said: Any, tmp_path: Path) -> None:
    turns = [TURNS[0], turn, {"role": "tool", "tool_call_id": "c1", "content": "2"}, TURNS[1]]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [{"messages": turns}])).train[0]
    text = said if isinstance(said, str) else "\n".join(said)
    assert texts(found.messages) == [*ASKED, ("assistant", text), ("tool", "2"), ("assistant", A)]


def test_what_ms_swift_has_in_several_turns_is_one_of_the_assistants(tmp_path: Path) -> None:
    call = {"role": "tool_call", "content": '{"name": "sum", "arguments": {}}'}
    answers = [{"role": "tool_response", "content": "2"}] * 2
    turns = [TURNS[0], TURNS[1], call, call, *answers, TURNS[1]]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [{"messages": turns}])).train[0]
    called = ("assistant", f"{A}\n{CALL}\n{CALL}")
    assert texts(found.messages) == [*ASKED, called, ("tool", "2"), ("tool", "2"), ("assistant", A)]


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"loss": False}, {"train": False, "weight": 1}, {"loss_weight": 0.0}]
)
def test_a_turn_of_weight_0_is_not_trained_on(mark: dict[str, Any], tmp_path: Path) -> None:
    turns = [TURNS[0], TURNS[1] | mark, *TURNS]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [{"messages": turns}])).train[0]
    assert [turn.trained for turn in found.messages] == [True, False, True, True]


GOOD, BAD = {"role": "assistant", "content": A}, {"role": "assistant", "content": B}
PAIRS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "lists in JSON (Chatbot Arena 55k)": (
        {
            "prompt": json.dumps([Q]),
            "response_a": json.dumps([A]),
            "response_b": json.dumps([B]),
            "winner_model_a": 1,
        },
        ASKED,
    ),
    "scores of votes (Stack Exchange)": (
        {"question": Q, "answers": [{"text": B, "pm_score": 1}, {"text": A, "pm_score": 3}]},
        ASKED,
    ),
    "query/chosen/rejected": ({"query": Q, "chosen": A, "rejected": B}, ASKED),
    "prompt/chosen/rejected": ({"prompt": Q, "chosen": A, "rejected": B}, ASKED),
    "alpaca (LLaMA-Factory)": (
        {"instruction": "1", "input": "+1", "chosen": A, "rejected": B},
        [("user", "1\n+1")],
    ),
    "output: [best, worst] (LLaMA-Factory)": (
        {"instruction": Q, "input": "", "output": [A, B]},
        ASKED,
    ),
    "sharegpt and messages (LLaMA-Factory)": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": B},
        },
        ASKED,
    ),
    "lists of one text": ({"prompt": Q, "chosen": [A], "rejected": [B]}, ASKED),
    "lists of one message (TRL)": (
        {"prompt": TURNS[:1], "chosen": [GOOD], "rejected": [BAD]},
        ASKED,
    ),
    "UltraFeedback binarized": (
        {
            "prompt": Q,
            "prompt_id": "x",
            "chosen": [TURNS[0], GOOD],
            "rejected": [TURNS[0], BAD],
            "messages": TURNS,
            "score_chosen": 8.0,
            "score_rejected": 6.5,
        },
        ASKED,
    ),
    "dialogues alone (TRL implicit prompt)": (
        {"chosen": [TURNS[0], GOOD], "rejected": [TURNS[0], BAD], "chosen-rating": 5.0},
        ASKED,
    ),
    "orca_dpo_pairs": (
        {"system": "S", "question": Q, "chosen": A, "rejected": B},
        [("system", "S"), *ASKED],
    ),
    "system beside dialogues": (
        {"system": "S", "chosen": [TURNS[0], GOOD], "rejected": [TURNS[0], BAD]},
        [("system", "S"), *ASKED],
    ),
    "stack-exchange-paired": ({"qid": 1, "question": Q, "response_j": A, "response_k": B}, ASKED),
    "hh-rlhf": ({"chosen": f"{HH} {A}", "rejected": f"{HH} {B}"}, HH_TURNS),
    "hh-rlhf with prompt (Dahoas)": (
        {"prompt": HH, "response": f" {A}", "chosen": A, "rejected": B},
        HH_TURNS,
    ),
    "PKU-SafeRLHF": (
        {
            "prompt": Q,
            "response_0": B,
            "response_1": A,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        ASKED,
    ),
    "HelpSteer2": (
        {"prompt": Q, "response_1": A, "response_2": B, "preference_strength": -2},
        ASKED,
    ),
    "HelpSteer3": (
        {"context": TURNS[:1], "response1": B, "response2": A, "overall_preference": 3},
        ASKED,
    ),
    "Arena": (
        {"conversation_a": [TURNS[0], BAD], "conversation_b": TURNS, "winner": "model_b"},
        ASKED,
    ),
    "AlpacaFarm": (
        {"instruction": Q, "input": "", "output_1": B, "output_2": A, "preference": 2},
        ASKED,
    ),
    "SHP": ({"history": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1}, ASKED),
    "ranks": ({"prompt": Q, "answers": [B, A], "ranks": [1, 0]}, ASKED),
    "scores": ({"prompt": Q, "responses": [B, A], "scores": [0.1, 0.7]}, ASKED),
    "scored completions (UltraFeedback)": (
        {
            "instruction": Q,
            "completions": [
                {"response": B, "overall_score": 2.0},
                {"response": A, "overall_score": 8.5},
            ],
        },
        ASKED,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_preferences_are_recognised(name: str, tmp_path: Path) -> None:
    row, asked = PAIRS[name]
    found = load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train[0]
    assert texts(found.prompt) == asked
    assert [texts(answer) for answer in found.answers] == [[("assistant", A)], [("assistant", B)]]
    assert found.ranks == (0, 1)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_labelled_answers_and_prompts_too(name: str, tmp_path: Path) -> None:
    row, asked = PAIRS[name]
    path = jsonl(tmp_path / "a.jsonl", [row])
    found = load(load_labelled, path).train
    assert [(texts(x.prompt), texts(x.answer)[0][1], x.good) for x in found] == [
        (asked, A, True),
        (asked, B, False),
    ]
    assert texts(load(load_prompts, path).train[0].messages) == asked


def test_margin_is_read(tmp_path: Path) -> None:
    row = {"query": Q, "chosen": A, "rejected": B, "margin": 0.5}
    assert load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train[0].margin == 0.5


def test_ranked_lists_keep_ties_and_drop_repeats(tmp_path: Path) -> None:
    row = {"query": Q, "answers": ["c", "a", "b", "b", "d"], "ranks": [5, 1, 2, 2, 5]}
    found = load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train[0]
    assert [answer[0].content for answer in found.answers] == ["a", "b", "c", "d"]
    assert found.ranks == (0, 1, 2, 2)


def test_dialogues_that_part_early_keep_what_follows_in_the_answer(tmp_path: Path) -> None:
    """Some rows of hh-rlhf part before the last answer, or at a user's turn."""
    start = "\n\nHuman: Hi\n\nAssistant: Hello."
    early = {
        "chosen": f"{start}\n\nHuman: x\n\nAssistant: 1",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go.\n\nHuman: y\n\nAssistant: 2",
    }
    at_user = {
        "chosen": f"{start}\n\nHuman: x\n\nAssistant: 1",
        "rejected": f"{start}\n\nHuman: y\n\nAssistant: 2",
    }
    for row, worse in ((early, "Go."), (at_user, "Hello.")):
        found = load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train[0]
        assert texts(found.prompt) == [("user", "Hi")]
        assert [[turn.content for turn in answer] for answer in found.answers] == [
            ["Hello.", "x", "1"],
            [worse, "y", "2"],
        ]


LABELLED = {
    "messages + label (LLaMA-Factory)": {"messages": TURNS, "label": True},
    "prompt/completion/label (TRL)": {"prompt": Q, "completion": A, "label": True},
    "turns/completion/label (TRL)": {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
    "kto_tag": {"instruction": Q, "input": "", "output": A, "kto_tag": 1},
    "label as text": {"prompt": Q, "completion": A, "label": "True"},
}


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_answers_are_recognised(name: str, tmp_path: Path) -> None:
    found = load(load_labelled, jsonl(tmp_path / "a.jsonl", [LABELLED[name]])).train[0]
    assert (texts(found.prompt), texts(found.answer), found.good) == (ASKED, DIALOGUE[1:], True)


def test_labelled_answers_are_no_dialogues_to_imitate_unless_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"messages": TURNS, "label": False}])
    with pytest.raises(BadData, match="format: messages"):
        load(load_dialogues, path)
    assert load(load_dialogues, path, format="messages").train


def test_a_class_label_is_no_judgement(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": Q, "answer": A, "label": 7}])
    assert texts(load(load_dialogues, path).train[0].messages) == DIALOGUE


def test_a_label_of_0_or_1_is_a_judgement_where_the_format_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "answer": A, "label": label} for label in (1, 0)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(BadData, match="`format: kto` reads a label of 0 or 1"):
        load(load_labelled, path)
    assert [row.good for row in load(load_labelled, path, format="kto").train] == [True, False]


def test_plain_text_and_the_pretraining_mix(tmp_path: Path) -> None:
    text = jsonl(tmp_path / "c4.jsonl", [{"text": "Long ago", "url": "x"}])
    assert load(load_language, text).train[0].text == "Long ago"
    dialogue = jsonl(tmp_path / "a.jsonl", [{"prompt": Q, "answer": A}])
    assert texts(load(load_language, dialogue).train[0].messages) == DIALOGUE


def test_mapped_columns_win(tmp_path: Path) -> None:
    row = {"prompt": "no", "answer": "no", "frage": Q, "antwort": A}
    path = jsonl(tmp_path / "a.jsonl", [row])
    found = load(load_dialogues, path, columns={"prompt": "frage", "answer": "antwort"})
    assert texts(found.train[0].messages) == DIALOGUE


def test_mapped_columns_win_over_columns_that_would_be_recognised(tmp_path: Path) -> None:
    asked = {"frage": Q, "antwort": A}
    own = {"prompt": "frage", "answer": "antwort"}
    others: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "no"}, TURNS[1]]},
        {"chosen": "no", "rejected": "neither"},
    ]
    path = jsonl(tmp_path / "a.jsonl", [asked | others[0]])
    assert texts(load(load_dialogues, path, columns=own).train[0].messages) == DIALOGUE
    path = jsonl(tmp_path / "b.jsonl", [asked | others[1]])
    assert texts(load(load_dialogues, path, columns=own).train[0].messages) == DIALOGUE
    path = jsonl(tmp_path / "c.jsonl", [asked | others[0] | {"label": True}])
    found = load(load_labelled, path, columns=own).train[0]
    assert texts(found.prompt + found.answer) == DIALOGUE
    path = jsonl(tmp_path / "d.jsonl", [PAIR | {"gespräch": TURNS[:1], "query": "no"}])
    pair = load(load_preferences, path, columns={"messages": "gespräch"}).train[0]
    assert texts(pair.prompt) == DIALOGUE[:1]


def test_a_mapped_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "answer": A, "system_text": "S"}, {"prompt": Q, "answer": A, "id": None}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    columns = {"system": "sytem_text", "history": "earlier"}
    said = (
        "its/source: columns.system: no row has a column `sytem_text`; "
        "columns.history: no row has a column `earlier`; there are prompt, answer, system_text, id"
    )
    with pytest.raises(BadData, match=f"^{said}$"):
        load(load_dialogues, path, columns=columns)
    with pytest.raises(BadData, match="no row among the first 1 has a column `id`; there are"):
        load(load_dialogues, path, columns={"system": "id"}, limit=1)
    assert load(load_dialogues, path, columns={"system": "id"}).train  # which is always null


def test_a_mapped_column_may_be_missing_from_held_out_rows_and_from_some_files(
    tmp_path: Path,
) -> None:
    jsonl(tmp_path / "set/a.jsonl", [{"frage": Q, "antwort": A, "vorher": "S"}])
    jsonl(tmp_path / "set/b.jsonl", [{"messages": TURNS}])
    heldout = jsonl(tmp_path / "held.jsonl", [{"frage": Q, "antwort": A}])
    columns = {"prompt": "frage", "answer": "antwort", "system": "vorher"}
    source = DataSource.model_validate({"source": "set", "eval_source": "held", "columns": columns})
    found = load_dialogues(source, {"set": str(tmp_path / "set"), "held": str(heldout)}, SEED)
    assert [len(row.messages) for row in (*found.train, *found.heldout)] == [3, 2, 2]


def test_a_mapped_column_that_the_layout_does_not_read_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"messages": TURNS, "extra": "more"}])
    with pytest.raises(BadData, match=r"columns\.input would not be read: .* as messages/conv"):
        load(load_dialogues, path, columns={"input": "extra"})


def test_a_transcript_may_have_a_system_message_in_a_column_of_its_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"Human: {Q}\n\nAssistant: {A}", "system": "S"}])
    found = load(load_dialogues, path).train[0]
    assert texts(found.messages) == [("system", "S"), *DIALOGUE]


def test_turns_that_stand_in_a_text_as_json_are_turns(tmp_path: Path) -> None:
    turns = {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [TURNS[1] | {"content": B}]}
    rows = [
        {name: json.dumps(value) for name, value in turns.items()},
        {name: json.dumps(value[0]) for name, value in turns.items()},
    ]
    for pair in load(load_preferences, jsonl(tmp_path / "a.jsonl", rows)).train:
        assert texts(pair.prompt) == ASKED
        assert [texts(answer) for answer in pair.answers] == [DIALOGUE[1:], [("assistant", B)]]
    rows = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in rows]
    for dialogue in load(load_dialogues, jsonl(tmp_path / "b.jsonl", rows)).train:
        assert texts(dialogue.messages) == DIALOGUE


def test_an_answer_in_json_stays_a_text(tmp_path: Path) -> None:
    for said in ('{"role": "clerk", "name": "Ada"}', '[{"a": 1}]', '{"a": 1', "[1, 2]"):
        path = jsonl(tmp_path / "a.jsonl", [{"prompt": Q, "answer": said}])
        assert load(load_dialogues, path).train[0].messages[1].content == said
        path = jsonl(tmp_path / "b.jsonl", [{"prompt": Q, "chosen": said, "rejected": B}])
        assert load(load_preferences, path).train[0].answers[0][0].content == said


def test_turns_in_pythons_notation_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f'prompt,chosen,rejected\n{Q},"{TURNS[1:]}",{B}\n')
    with pytest.raises(
        BadData, match=r"a\.csv:2: `chosen` is a list of turns in Python's notation"
    ):
        load(load_preferences, path)


def test_arguments_of_a_call_are_json_once(tmp_path: Path) -> None:
    """OpenAI's API has them as a text; templates and parsers of calls want the object."""
    said = []
    for arguments in ({"city": "北京"}, '{"city": "北京"}'):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
        path = jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
        said.append(load(load_dialogues, path).train[0].messages[1].text)
    call_text = '<tool_call>\n{"name": "f", "arguments": {"city": "北京"}}\n</tool_call>'
    assert said == [call_text, call_text]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"images": ["a.png"]}, "`images` belongs to the text"),
        ({"image": {"bytes": None, "path": "a.png"}}, "`image` belongs to the text"),
        ({"image": "a.png", "prompt": f"<image>\n{Q}"}, "`image` belongs to the text"),
        (
            {"answer": {"role": "assistant", "content": A, "reasoning_content": "1, then 2"}},
            "`answer[1]` has `reasoning_content`, which is not read",
        ),
        ({"answer": [GOOD | {"weight": 0.5}]}, "`answer[1].weight` is 0.5; a turn is learnt (1)"),
        ({"prompt": [TURNS[0] | {"name": "Ann"}]}, "`prompt[1]` has a `name`, which is not read"),
        ({"prompt": [TURNS[0] | {"images": ["a.png"]}]}, "`prompt[1].images` belongs to the text"),
        (
            {"prompt": [TURNS[0] | {"content": [{"type": "image_url", "text": "a.png"}]}]},
            "`prompt[1]` holds a part of type 'image_url'",
        ),
        (
            {"prompt": [{"role": "system", "content": "S"}, *TURNS[:1]], "system": "T"},
            "`system` is not the system message that the turns begin with",
        ),
    ],
)
def test_what_a_row_holds_beside_its_text_is_not_left_out_silently(
    more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": Q, "answer": A} | more])
    with pytest.raises(BadData, match=re.escape(reason)):
        load(load_dialogues, path)


def test_a_system_message_goes_before_the_history_and_may_stand_twice(tmp_path: Path) -> None:
    system = {"role": "system", "content": "S"}
    row = {"prompt": [system, *TURNS[:1]], "answer": A, "history": [["H", "R"]], "system": "S "}
    (found,) = load(load_dialogues, jsonl(tmp_path / "a.jsonl", [row])).train
    assert texts(found.messages) == [
        ("system", "S"), ("user", "H"), ("assistant", "R"), ("user", Q), ("assistant", A)
    ]  # fmt: skip


def test_a_column_of_pictures_without_any_is_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "answer": A} | more for more in ({"images": []}, {"image": "logo.png"})]
    assert len(load(load_dialogues, jsonl(tmp_path / "a.jsonl", rows)).train) == 2


@pytest.mark.parametrize("value", [float("nan"), "nan", "inf", True, "", "10" * 400])
def test_a_rank_or_margin_that_is_no_finite_number_is_refused(value: Any, tmp_path: Path) -> None:
    ranked = {"prompt": Q, "answers": [A, B], "ranks": [str(value), "1"]}
    pq.write_table(pa.Table.from_pylist([ranked]), tmp_path / "a.parquet")
    with pytest.raises(BadData, match=r"`ranks` is .*, not a number"):
        load(load_preferences, tmp_path / "a.parquet")
    if value != "":
        pq.write_table(pa.Table.from_pylist([PAIR | {"margin": value}]), tmp_path / "b.parquet")
        with pytest.raises(BadData, match=r"`margin` is .*, not a number"):
            load(load_preferences, tmp_path / "b.parquet")


def test_lists_in_csv_cells_are_json(tmp_path: Path) -> None:
    cell = json.dumps(TURNS).replace('"', '""')
    path = write(tmp_path / "a.csv", f'id,messages\n1,"{cell}"\n')
    assert texts(load(load_dialogues, path).train[0].messages) == DIALOGUE


def test_empty_csv_cells_of_what_rows_may_lack_are_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"prompt,answer,history,system\n{Q},{A},,\n{Q},{A},[],\n")
    assert [texts(row.messages) for row in load(load_dialogues, path).train] == [DIALOGUE] * 2
    path = write(tmp_path / "b.csv", f"prompt,chosen,rejected,margin\n{Q},{A},B,\n{Q},{A},B,2\n")
    assert [row.margin for row in load(load_preferences, path).train] == [0, 2]


def test_columns_that_some_rows_lack_are_seen(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "answer": A}, {"prompt": Q, "answer": A, "system": "S"}]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", rows)).train
    assert [len(row.messages) for row in found] == [2, 3]


@pytest.mark.parametrize("absent", [{}, {"system_prompt": None, "input": None, "history": None}])
def test_a_column_that_only_late_rows_have_is_not_lost(
    absent: dict[str, Any], tmp_path: Path
) -> None:
    late = {"system_prompt": "S", "input": "I", "history": [["H", "R"]]}
    rows: list[dict[str, Any]] = [{"instruction": Q, "output": A}] * 70
    rows = [row | absent for row in rows] + [rows[0] | late]
    found = load(load_dialogues, jsonl(tmp_path / "a.jsonl", rows)).train
    assert texts(found[0].messages) == DIALOGUE
    earlier = [("system", "S"), ("user", "H"), ("assistant", "R")]
    assert texts(found[-1].messages) == [*earlier, ("user", f"{Q}\nI"), ("assistant", A)]


def test_a_margin_that_only_late_rows_have_is_not_lost(tmp_path: Path) -> None:
    pair = {"prompt": Q, "chosen": A, "rejected": "B"}
    rows = [*([pair] * 70), pair | {"margin": 2, "tools": [{"name": "f"}]}]
    found = load(load_preferences, jsonl(tmp_path / "a.jsonl", rows)).train
    assert (found[0].margin, found[-1].margin) == (0, 2)
    assert found[-1].extras.tools == ({"name": "f"},)


PAIR = {"prompt": Q, "chosen": A, "rejected": B}
EXTRA_ROWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": (load_dialogues, {"messages": TURNS}),
    "prompt and completion": (load_dialogues, {"prompt": TURNS[:1], "completion": TURNS[1:]}),
    "pair": (load_preferences, PAIR),
    "ranked": (load_preferences, {"prompt": Q, "answers": [A, B], "ranks": [0, 1]}),
    "labelled": (load_labelled, {"prompt": Q, "completion": A, "label": True}),
    "prompt": (load_prompts, {"prompt": Q}),
}


@pytest.mark.parametrize("layout", EXTRA_ROWS)
@pytest.mark.parametrize("written", [dict, json.dumps], ids=["object", "text"])
def test_what_rows_set_for_their_template_comes_along(
    layout: str, written: Any, tmp_path: Path
) -> None:
    loader, row = EXTRA_ROWS[layout]
    row = row | {"chat_template_kwargs": written({"enable_thinking": False})}
    found = load(loader, jsonl(tmp_path / "a.jsonl", [row, row | {"chat_template_kwargs": ""}]))
    assert [item.extras.kwargs for item in found.train] == [(("enable_thinking", False),), ()]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"add_generation_prompt": True}, "sets `add_generation_prompt`, which is not for a row"),
        (["enable_thinking"], "`chat_template_kwargs` is list, not an object"),
        ("{", "`chat_template_kwargs` is not JSON"),
    ],
)
def test_what_no_row_can_set_for_its_template_is_refused(
    value: Any, said: str, tmp_path: Path
) -> None:
    row = {"messages": TURNS, "chat_template_kwargs": value}
    with pytest.raises(BadData, match=said):
        load(load_dialogues, jsonl(tmp_path / "a.jsonl", [row]))


def test_files_of_a_folder_may_differ(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"prompt": Q, "answer": A}])
    jsonl(tmp_path / "b.jsonl", [{"messages": TURNS}])
    found = load(load_dialogues, tmp_path).train
    assert [texts(row.messages) for row in found] == [DIALOGUE, DIALOGUE]


def test_unknown_columns_are_listed_with_what_is_known_and_how_to_map(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"frage": Q, "antwort": A}])
    with pytest.raises(BadData) as refusal:
        load(load_dialogues, path)
    for part in (
        "Found: frage, antwort",
        "prompt/query/question",
        "columns: {prompt:",
        "its/source: a.jsonl: the columns",
    ):
        assert part in str(refusal.value)


PAIR = {"query": Q, "chosen": A, "rejected": B}
BAD_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "missing chosen": ({"query": Q, "rejected": B}, "`chosen` is missing"),
    "null chosen": (PAIR | {"chosen": None}, "`chosen` is missing"),
    "blank chosen": (PAIR | {"chosen": " \n"}, "`chosen` is blank"),
    "number chosen": (PAIR | {"chosen": 3}, "`chosen` is int, not text"),
    "equal": (PAIR | {"rejected": A}, "chosen and rejected are the same"),
    "blank query": (PAIR | {"query": ""}, "`query` is blank"),
    "missing query": ({"chosen": A, "rejected": B}, "`query` is missing"),
    "blank transcript": ({"query": Q, "chosen": HH, "rejected": f"{HH} x"}, "`chosen` is blank"),
    "margin": (PAIR | {"margin": "much"}, "`margin` is 'much', not a number"),
    "empty list": (PAIR | {"chosen": []}, "`chosen` is not a list of turns, or an empty one"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_are_refused_with_line_and_reason(name: str, tmp_path: Path) -> None:
    bad, reason = BAD_PAIRS[name]
    path = jsonl(tmp_path / "a.jsonl", [PAIR, bad, PAIR | {"query": "other"}])
    with pytest.raises(BadData) as refusal:
        load(load_preferences, path)
    assert f"a.jsonl:2: {reason}" in str(refusal.value)
    skipped = load(load_preferences, path, on_error="skip", max_skipped_fraction=0.4)
    assert len(skipped.train) == 2


BAD_DIALOGUES: dict[str, tuple[list[Any], str]] = {
    "unknown role": ([{"role": "narrator", "content": "x"}], "unknown role 'narrator'"),
    "no content": ([{"role": "user"}], "has no content"),
    "blank content": ([{"role": "user", "content": "  "}], "is blank"),
    "no role": ([{"content": "x"}], "has no role"),
    "image": ([{"role": "user", "content": [{"type": "image"}]}], "part of type 'image'"),
    "unanswered": ([TURNS[0]], "there is no answer to learn"),
    "nameless call": ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "names no function"),
    "call of more": (
        [{"role": "assistant", "tool_calls": [{"name": "f", "result": 1}]}],
        "has `result`, which is not read",
    ),
    "user's call": (
        [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}],
        "calls functions, and is the user's turn",
    ),
    "no question": ([TURNS[1]], "an answer without a question"),
    "not objects": ([1], "is not an object"),
    "empty": ([], "an empty one"),
}


@pytest.mark.parametrize("name", BAD_DIALOGUES)
def test_bad_dialogues_are_refused_with_line_and_reason(name: str, tmp_path: Path) -> None:
    bad, reason = BAD_DIALOGUES[name]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": bad}])
    with pytest.raises(BadData, match=r"a\.jsonl:2: .*" + reason):
        load(load_dialogues, path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": Q, "answers": [A], "ranks": [0]}, "does not hold two answers"),
        ({"query": Q, "answers": [A, B], "ranks": [0]}, "one number for each of 2"),
        ({"query": Q, "answers": [A, B], "ranks": [1, 1]}, "are tied"),
        ({"query": Q, "answers": [A, A, B], "ranks": [0, 1, 2]}, "the same answer at two ranks"),
        ({"query": Q, "answers": [A, ""], "ranks": [0, 1]}, "is blank"),
        ({"prompt": Q, "response_1": A, "response_2": B, "preference_strength": 0}, "neither"),
    ],
)
def test_bad_rankings_are_refused(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"a\.jsonl:1: .*" + reason):
        load(load_preferences, jsonl(tmp_path / "a.jsonl", [row]))


def test_several_right_answers_are_no_ranking(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"question": Q, "answers": ["2", "two"]}])
    said = r"\(`format: ranked` takes the list in `answers` as best first\)\n.*no two answers"
    with pytest.raises(BadData, match=said):
        load(load_preferences, path)
    for own in ({"format": "ranked"}, {"columns": {"answers": "answers"}}):
        (found,) = load(load_preferences, path, **own).train
        assert [answer[0].content for answer in found.answers] == ["2", "two"]
        assert found.ranks == (0, 1)


def test_rows_of_two_dialogues_in_json_lists_part_where_their_first_answers_do(
    tmp_path: Path,
) -> None:
    row = {
        "prompt": json.dumps(["H", Q]),
        "response_a": json.dumps(["R", B]),
        "response_b": json.dumps(["R", A]),
        "winner_model_a": 0,
    }
    (found,) = load(load_preferences, jsonl(tmp_path / "a.jsonl", [row])).train
    assert texts(found.prompt) == [("user", "H"), ("assistant", "R"), *ASKED]
    assert [texts(answer) for answer in found.answers] == [[("assistant", A)], [("assistant", B)]]


@pytest.mark.parametrize(
    ("loader", "row", "hint"),
    [
        (
            load_labelled,
            {"prompt": Q, "response": A, "is_safe": True},
            r"\(`columns: \{label: is_safe\}` reads `is_safe` as the label\)",
        ),
        (
            load_dialogues,
            {"message_tree_id": "x", "text": Q, "role": "prompter"},
            r"\(each row is one message of a tree: write whole dialogues",
        ),
    ],
)
def test_rows_of_other_data_sets_are_refused_with_what_would_read_them(
    loader: Any, row: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=hint):
        load(loader, jsonl(tmp_path / "a.jsonl", [row]))
