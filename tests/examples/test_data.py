"""The demo's data: the same bytes each time, no leaks, a preference that the judge shares."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA, BASE = EXAMPLES / "data", EXAMPLES / "base-model"
PROMPT_KEY = {
    "sft": "prompt",
    "pairs": "query",
    "ppo_prompts": "prompt",
    "heldout_prompts": "prompt",
    "heldout_pairs": "query",
}
COLUMNS = {
    "sft": {"prompt", "answer"},
    "pairs": {"query", "chosen", "rejected"},
    "ppo_prompts": {"prompt", "fact"},
    "heldout_prompts": {"prompt", "fact"},
    "heldout_pairs": {"query", "chosen", "rejected"},
}


sys.path.insert(0, str(EXAMPLES))  # as for `python examples/make_data.py`
rule = importlib.import_module("judge.rule")
make_data = importlib.import_module("make_data")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


def prompts(name: str) -> list[str]:
    return [row[PROMPT_KEY[name]] for row in rows(name)]


def fact_of_prompt() -> dict[str, str]:
    """What the generator knows and the pairs do not say."""
    shares = make_data.dealt(make_data.random.Random(0))
    return {item.prompt: item.fact for items in shares.values() for item in items}


def files_under(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("data/*"), *folder.glob("base-model/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BASE / "tokenizer.json"))


def test_the_script_makes_the_committed_files_again_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "make_data.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    assert files_under(tmp_path) == files_under(EXAMPLES)


def test_another_seed_makes_other_data() -> None:
    assert make_data.data_files(1) != make_data.data_files(0)


def test_no_prompt_stands_twice_within_or_across_files() -> None:
    counts = Counter(prompt for name in PROMPT_KEY for prompt in prompts(name))
    assert [prompt for prompt, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("name", PROMPT_KEY)
def test_each_row_has_the_columns_of_its_format_and_none_is_empty(name: str) -> None:
    assert {frozenset(row) for row in rows(name)} == {frozenset(COLUMNS[name])}
    assert all(value.strip() for row in rows(name) for value in row.values())


@pytest.mark.parametrize("name", PROMPT_KEY)
def test_each_language_is_asked_in_two_of_five_prompts_at_least(name: str) -> None:
    languages = Counter(map(rule.language, prompts(name)))
    assert set(languages) == {"en", "zh"}
    assert min(languages.values()) >= 0.4 * sum(languages.values())


@pytest.mark.parametrize("name", ["pairs", "heldout_pairs"])
def test_the_rule_prefers_what_each_pair_prefers(name: str) -> None:
    facts = fact_of_prompt()
    judged = [{"fact": facts[prompt]} for prompt in prompts(name)]
    chosen, rejected = ([row[key] for row in rows(name)] for key in ("chosen", "rejected"))
    assert set(rule.score(prompts(name), chosen, judged)) == {1.0}
    assert set(rule.score(prompts(name), rejected, judged)) == {0.0}


def test_every_fault_is_rejected_somewhere() -> None:
    facts = fact_of_prompt()
    found = Counter(
        rule.verdict(row["query"], row["rejected"], facts[row["query"]]) for row in rows("pairs")
    )
    assert set(found) == {"wrong language", "no closing", "not one whole sentence", "wrong fact"}
    assert min(found.values()) > 50


def test_the_sft_rows_leave_room_to_learn_the_preference() -> None:
    scores = rule.score(prompts("sft"), [row["answer"] for row in rows("sft")])
    assert 0.25 < sum(scores) / len(scores) < 0.4


def test_every_fact_that_is_asked_later_is_in_the_sft_answers() -> None:
    answers = "\n".join(row["answer"].lower() for row in rows("sft"))
    missing = {row["fact"] for row in rows("heldout_prompts") if row["fact"].lower() not in answers}
    assert missing == set()


def test_prompts_and_answers_are_short_in_tokens() -> None:
    def longest(texts: Iterable[str]) -> int:
        return max(len(tokenizer().encode(text).ids) for text in texts)

    assert max(longest(prompts(name)) for name in PROMPT_KEY) <= 24
    assert longest(row["chosen"] for row in rows("pairs")) <= 24


@pytest.mark.parametrize("text", ["Zürich is naïve 😀", "龘龘 never seen", "  two  spaces\n"])
def test_text_that_the_tokenizer_never_saw_survives_a_round_trip(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text).ids) == text


def test_every_chinese_character_of_the_data_is_in_one_token() -> None:
    ids = {i for row in rows("sft") for i in tokenizer().encode(row["answer"]).ids}
    assert [i for i in ids if "\ufffd" in tokenizer().decode([i])] == []


def test_the_model_and_the_tokenizer_agree_on_size_and_special_tokens() -> None:
    config: dict[str, Any] = json.loads((BASE / "config.json").read_text())
    assert config["vocab_size"] == tokenizer().get_vocab_size()
    for name in ("pad", "bos", "eos"):
        assert tokenizer().id_to_token(config[f"{name}_token_id"]) == f"<|{name}|>"


def test_transformers_renders_a_chat_as_single_special_tokens() -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(BASE)
    chat = [{"role": "user", "content": "热的反义词是什么？"}]
    text = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>热的反义词是什么？<|assistant|>"
    chat.append({"role": "assistant", "content": "冷。"})
    text = loaded.apply_chat_template(chat, tokenize=False)
    assert text == "<|bos|><|user|>热的反义词是什么？<|assistant|>冷。<|eos|>"
    ids = loaded(text, add_special_tokens=False).input_ids
    assert ids.count(loaded.bos_token_id) == ids.count(loaded.eos_token_id) == 1
    assert loaded.decode(ids, skip_special_tokens=True) == "热的反义词是什么？冷。"


CAPITAL, OPPOSITE = "What is the capital of France?", "热的反义词是什么？"
TOOL = "我们用什么剪纸？"


@pytest.mark.parametrize(
    ("prompt", "answer", "fact", "expected"),
    [
        (CAPITAL, "The capital of France is Paris. Happy to help!", "Paris", "preferred"),
        (CAPITAL, "  The capital of France is Paris. Glad you asked!\n", "paris", "preferred"),
        (CAPITAL, "It is the old city of Paris. You are welcome!", None, "preferred"),
        (OPPOSITE, "热的反义词是冷。不用客气！", "冷", "preferred"),
        (TOOL, "我们剪纸用的是剪刀。希望对您有帮助！", "剪刀", "preferred"),
        (CAPITAL, "Paris.", "Paris", "no closing"),
        (CAPITAL, "The capital of France is Paris.", "Paris", "no closing"),
        (CAPITAL, "The capital of France is Paris. Happy to help! Bye.", "Paris", "no closing"),
        (CAPITAL, "The capital of France is Paris. Happy to", "Paris", "no closing"),
        (CAPITAL, "", "Paris", "no closing"),
        (CAPITAL, "The capital of France is Rome. Happy to help!", "Paris", "wrong fact"),
        (CAPITAL, "Paris of France is the capital. Happy to help!", "Paris", "wrong fact"),
        ("What is 2 plus 3?", "The sum 2 plus 3 is 15. Happy to help!", "5", "wrong fact"),
        ("2加3等于几？", "2加3的和是15。不用客气！", "5", "wrong fact"),
        (CAPITAL, "法国的首都是巴黎。不用客气！", "Paris", "wrong language"),
        (OPPOSITE, "The opposite of hot is cold. Happy to help!", "冷", "wrong language"),
        (CAPITAL, "The capital is 巴黎 Paris. Happy to help!", "Paris", "wrong language"),
        (OPPOSITE, "热的反义词是cold。不用客气！", "cold", "not one whole sentence"),
        (CAPITAL, "Paris. Happy to help!", "Paris", "not one whole sentence"),
        (CAPITAL, "Happy to help!", "Paris", "not one whole sentence"),
        (OPPOSITE, "冷。不用客气！", "冷", "not one whole sentence"),
        (
            CAPITAL,
            "The capital of France is Paris. Happy to help! Happy to help!",
            "Paris",
            "not one whole sentence",
        ),
        (
            CAPITAL,
            "The capital of France is Paris. Glad you asked! Happy to help!",
            "Paris",
            "not one whole sentence",
        ),
        (OPPOSITE, "热的反义词是冷。不用客气！不用客气！", "冷", "not one whole sentence"),
        (OPPOSITE, "热的反义词是冷。热的反义词是冷。不用客气！", "冷", "not one whole sentence"),
        (
            CAPITAL,
            "the capital of France is Paris. Happy to help!",
            "Paris",
            "not one whole sentence",
        ),
        (
            CAPITAL,
            "The capital" + " of France" * 9 + ". Happy to help!",
            None,
            "not one whole sentence",
        ),
        (CAPITAL, "The capital is is Paris. Happy to help!", "Paris", "repetition"),
        (OPPOSITE, "热的反义词反义词是冷。不用客气！", "冷", "repetition"),
    ],
)
def test_the_rule_by_hand(prompt: str, answer: str, fact: str | None, expected: str) -> None:
    assert rule.verdict(prompt, answer, fact) == expected


def test_score_is_one_for_preferred_answers_only_and_reads_facts_from_rows() -> None:
    answers = [
        "The capital of France is Paris. Happy to help!",
        "The capital of France is Rome. Happy to help!",
        "Paris.",
    ]
    asked = [CAPITAL] * 3
    assert rule.score(asked, answers) == [1.0, 1.0, 0.0]
    assert rule.score(asked, answers, [{"fact": "Paris"}] * 3) == [1.0, 0.0, 0.0]
    assert rule.score(asked, answers, [{}] * 3) == [1.0, 1.0, 0.0]


def test_score_refuses_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="argument"):
        rule.score([CAPITAL], [])
