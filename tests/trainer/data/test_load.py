"""Sources to examples: what is held out, filled in, limited, counted and capped; and real files."""

from __future__ import annotations

import json
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from data_files import SEED, Load, jsonl, load, write
from rlhf_api.data import DataSource
from rlhf_trainer.data.load import (
    Loaded,
    load_dialogues,
    load_labelled,
    load_preferences,
    load_prompts,
    prompts_in_turn,
)
from rlhf_trainer.errors import BadData, ConfigurationError

REAL = Path(__file__).parents[4] / "shared" / "data"


def rows(count: int, per_prompt: int = 1) -> list[dict[str, str]]:
    return [{"prompt": f"q{i // per_prompt}", "answer": f"a{i}"} for i in range(count * per_prompt)]


def asked(found: list[Any]) -> set[str]:
    return {row.messages[0].content for row in found}


def test_rows_with_one_prompt_are_never_in_both_parts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(300, per_prompt=3))
    found = load(load_dialogues, path, eval_fraction=0.2)
    assert not asked(found.train) & asked(found.heldout)
    assert len(found.train) + len(found.heldout) == 900
    assert 0.12 < len(found.heldout) / 900 < 0.28


def test_the_split_hangs_on_seed_and_prompt_alone(tmp_path: Path) -> None:
    some = rows(200)
    source = DataSource(source="x", eval_fraction=0.2)

    def heldout(data: list[Any], seed: int) -> set[str]:
        path = jsonl(tmp_path / "a.jsonl", data)
        return asked(load_dialogues(source, {"x": str(path)}, seed).heldout)

    first = heldout(some, SEED)
    assert heldout(some[::-1], SEED) == first
    assert heldout([*some, {"prompt": "new", "answer": "x"}], SEED) - {"new"} == first
    assert heldout(some, SEED + 1) != first


def test_of_a_small_set_one_prompt_is_held_out_and_never_all(tmp_path: Path) -> None:
    two = jsonl(tmp_path / "a.jsonl", rows(2))
    assert len(load(load_dialogues, two, eval_fraction=0.01).heldout) == 1
    one = jsonl(tmp_path / "b.jsonl", rows(1))
    assert len(load(load_dialogues, one, eval_fraction=0.5).train) == 1


def test_a_held_out_set_of_its_own(tmp_path: Path) -> None:
    paths = {
        "train": str(jsonl(tmp_path / "a.jsonl", rows(3))),
        "eval": str(jsonl(tmp_path / "b.jsonl", rows(2))),
    }
    source = DataSource(source="train", eval_source="eval", eval_fraction=0.5)
    found = load_dialogues(source, paths, SEED)
    assert (len(found.train), len(found.heldout)) == (3, 2)


def test_a_set_is_not_held_out_from_itself(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "answer": "a"} for i in range(3)]
    file = jsonl(tmp_path / "set/train.jsonl", rows)
    for path in (file, file.parent):
        with pytest.raises(BadData, match="no split 'test' of its own"):
            load(load_dialogues, path, eval_source="its/source")
    jsonl(tmp_path / "set/test.jsonl", rows[:1])
    found = load(load_dialogues, file.parent, eval_source="its/source")
    assert (len(found.train), len(found.heldout)) == (3, 1)


def test_prompts_are_all_for_sampling(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(40))
    found = load(load_prompts, path, eval_fraction=0.25)
    assert (len(found.train), [*found.heldout]) == (40, [])


def test_the_first_prompts_need_no_more_of_the_file_than_they_take(tmp_path: Path) -> None:
    text = "\n".join(["prompt,answer", "one cell", *(f"q{i},a" for i in range(70)), '"no end'])
    paths = {"x": str(write(tmp_path / "a.csv", text))}
    with pytest.raises(BadData, match="bad CSV"):
        load_prompts(DataSource(source="x"), paths, SEED)
    found = islice(prompts_in_turn(DataSource(source="x"), paths), 2)
    assert [prompt.id for prompt in found] == ["a.csv:3", "a.csv:4"]
    assert len(list(prompts_in_turn(DataSource(source="x", limit=9), paths))) == 8


def test_a_folder_that_rows_are_held_out_from_gives_its_test_split(tmp_path: Path) -> None:
    for count, name in ((3, "train"), (2, "test")):
        jsonl(tmp_path / f"set/{name}.jsonl", rows(count))
    other = jsonl(tmp_path / "own.jsonl", rows(1))
    paths = {"own": str(other), "folder": str(tmp_path / "set")}
    found = load_dialogues(DataSource(source="own", eval_source="folder"), paths, SEED)
    assert (len(found.train), len(found.heldout)) == (1, 2)


def test_a_file_is_not_held_out_from_a_folder_that_it_lies_in(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "set/rows.jsonl", rows(3))
    jsonl(tmp_path / "set/more.jsonl", rows(2))
    linked = tmp_path / "mounted.jsonl"
    linked.hardlink_to(file)
    paths = {"file": str(linked), "folder": str(tmp_path / "set")}
    said = "folder: evalSource holds rows.jsonl, which is trained on as well"
    with pytest.raises(BadData, match=said):
        load_dialogues(DataSource(source="file", eval_source="folder"), paths, SEED)


def test_held_out_prompts_that_are_trained_on_as_well_are_told(tmp_path: Path) -> None:
    """By the prompt, whatever the answer; a chance repeat in a hundred rows is none."""
    trained = [{"prompt": f"q{i}", "answer": "a"} for i in range(300)]
    other = [{"prompt": f"new {i}", "answer": "b"} for i in range(197)]
    paths = {"a": str(jsonl(tmp_path / "a.jsonl", trained)), "b": str(tmp_path / "b.jsonl")}
    source = DataSource(source="a", eval_source="b")
    jsonl(tmp_path / "b.jsonl", [*other, *({"prompt": f"q{i}", "answer": "c"} for i in range(3))])
    (told,) = load_dialogues(source, paths, SEED).warnings
    assert told.startswith("3 of 200 rows of b ask what is trained on as well")
    jsonl(tmp_path / "b.jsonl", [*other, {"prompt": "q1", "answer": "c"}])
    assert not load_dialogues(source, paths, SEED).warnings


def test_variables_are_filled_in_everywhere_and_other_braces_left(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Who is {{name}}? {{other}} {{ name }} {name}"},
            {"role": "assistant", "content": "{{name}} \\1 by {{author}}"},
        ]
    }
    path = jsonl(tmp_path / "a.jsonl", [row])
    found = load(load_dialogues, path, variables={"name": "小明\\g<0>", "author": "X"}).train[0]
    assert [turn.content for turn in found.messages] == [
        "Who is 小明\\g<0>? {{other}} 小明\\g<0> {name}",
        "小明\\g<0> \\1 by X",
    ]


def test_a_variable_that_was_misspelt_is_refused(tmp_path: Path) -> None:
    asked = {"prompt": "Who are {{ name }}?", "answer": "{{name}} by {{author}}"}
    path = jsonl(tmp_path / "a.jsonl", [asked])
    said = r"variables: no row has {{nmae}}; there are {{author}}, {{name}}"
    with pytest.raises(BadData, match=said):
        load(load_dialogues, path, variables={"nmae": "Ada"})
    shared = {"name": "Ada", "author": "Lab", "version": "2"}  # with another source, say
    assert load(load_dialogues, path, variables=shared).train


def test_names_that_nobody_fills_in_are_told_where_a_file_is_full_of_them(tmp_path: Path) -> None:
    """Not of a file that has some in its code, however many names they are."""
    identity = [{"prompt": "Who?", "answer": "{{ name }} by {{author}}"}] * 2
    jsonl(tmp_path / "set/identity.jsonl", [*identity, {"prompt": "Hi", "answer": "{{name}}"}])
    code = [{"prompt": f"q{i}", "answer": f"<b>{{{{x{i}}}}}</b> {{{{ a + b }}}}"} for i in range(9)]
    jsonl(tmp_path / "set/code.jsonl", code)
    (told,) = load(load_dialogues, tmp_path / "set").warnings
    assert told.startswith("identity.jsonl: {{author}} in 2, {{name}} in 3 of 3 rows, which `var")
    (told,) = load(load_dialogues, tmp_path / "set", variables={"name": "Ada"}).warnings
    assert told.startswith("identity.jsonl: {{author}} in 2 of 3 rows")
    both = {"name": "Ada", "author": "Lab"}
    assert not load(load_dialogues, tmp_path / "set", variables=both).warnings


def test_columns_that_are_not_read_are_told(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "q", "context": "c", "answer": "a", "history": "", "tools": ""}]
    rows += [{"question": "q", "answer": "b", "thinking": "t"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert load(load_dialogues, path).warnings == ["columns that are not read: context, thinking"]
    assert load(load_prompts, path).warnings == []  # reward functions get the whole row
    mapped = load(load_dialogues, path, columns={"input": "context"}).train
    assert mapped[0].messages[0].content == "q\nc"
    many = {"prompt": "q", "chosen": "a", "rejected": "b"} | {f"c{i}": i for i in range(11)}
    (told,) = load(load_preferences, jsonl(path, [many])).warnings
    assert told == "columns that are not read: c0, c1, c2, c3, c4, c5, c6, c7 and 3 more"


def test_limit_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(map(line, rows(3))) + "broken\n")
    assert len(load(load_dialogues, path, limit=3).train) == 3
    with pytest.raises(BadData):
        load(load_dialogues, path, limit=4)


def line(row: dict[str, str]) -> str:
    return json.dumps(row) + "\n"


def test_twenty_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    bad = [{"prompt": "", "answer": "a"}] * 23
    path = jsonl(tmp_path / "a.jsonl", [*rows(2), *bad])
    with pytest.raises(BadData) as refusal:
        load(load_dialogues, path)
    message = str(refusal.value)
    assert "23 of 25 rows cannot be used" in message
    assert "a.jsonl:22:" in message
    assert "a.jsonl:23:" not in message
    assert "… and 3 more" in message


def test_skipping_is_counted_and_capped(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*rows(98), {"prompt": "x"}, {"answer": "y"}])
    found = load(load_dialogues, path, on_error="skip", max_skipped_fraction=0.02)
    assert [(row.line, row.reason) for row in found.skipped] == [
        (99, "`answer` is missing"),
        (100, "`prompt` is missing"),
    ]
    with pytest.raises(
        BadData, match=r"2\.00% would be left out; maxSkippedFraction allows 1\.90%"
    ):
        load(load_dialogues, path, on_error="skip", max_skipped_fraction=0.019)


def test_a_file_of_bad_rows_alone_is_refused_whatever_may_be_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "x\ny\n")
    with pytest.raises(BadData, match="no row can be used"):
        load(load_dialogues, path, on_error="skip", max_skipped_fraction=1.0)


def test_bad_rows_at_the_head_do_not_hide_the_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "x\n" + line({"prompt": "q"}) + "".join(map(line, rows(4))))
    found = load(load_dialogues, path, on_error="skip", max_skipped_fraction=0.5)
    assert (len(found.train), [row.line for row in found.skipped]) == (4, [1, 2])


def test_a_source_without_a_path_is_named() -> None:
    with pytest.raises(ConfigurationError, match="hf://a/b"):
        load_dialogues(DataSource(source="hf://a/b"), {}, SEED)


def real_file(name: str) -> Path:
    """A real file beside the checkout; where it is absent the test says so and is skipped."""
    if not (REAL / name).is_file():
        warnings.warn(f"{REAL / name} is not there: real data was not tried", stacklevel=2)
        pytest.skip(f"{name} is not there")
    return REAL / name


REAL_FILES: list[tuple[str, Load, int]] = [
    ("alpaca_en_demo.json", load_dialogues, 999),
    ("alpaca_zh_demo.json", load_dialogues, 1000),
    ("identity.json", load_dialogues, 91),
    ("dpo_en_demo.json", load_dialogues, 300),
    ("dpo_en_demo.json", load_preferences, 300),
    ("dpo_en_demo.json", load_labelled, 600),
    ("dpo_en_demo.json", load_prompts, 300),
    ("kto_en_demo.json", load_labelled, 300),
    ("kto_en_demo.json", load_prompts, 300),
]


@pytest.mark.parametrize(("name", "loader", "count"), REAL_FILES)
def test_real_files_load_whole(name: str, loader: Load, count: int) -> None:
    found: Loaded[Any] = load(loader, real_file(name), eval_fraction=0.1)
    assert len(found.train) + len(found.heldout) == count
    assert bool(found.heldout) == (loader is not load_prompts)


def test_real_text_is_that_of_the_file() -> None:
    path = real_file("alpaca_zh_demo.json")
    found = load(load_dialogues, path).train
    for row, example in zip(json.loads(path.read_text("utf-8")), found, strict=True):
        question = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
        assert [turn.content for turn in example.messages] == [question, row["output"]]


def test_real_identity_rows_take_their_variables() -> None:
    path = real_file("identity.json")
    (told,) = load(load_dialogues, path).warnings
    assert told.startswith("identity.json: {{author}} in 60, {{name}} in 77 of 91 rows")
    found = load(load_dialogues, path, variables={"name": "Ada", "author": "Lab"}).train
    everything = " ".join(turn.content for row in found for turn in row.messages)
    assert "{{" not in everything
    assert "Ada" in everything


def test_real_lines_are_where_rows_start() -> None:
    path = real_file("kto_en_demo.json")
    lines = path.read_text("utf-8").split("\n")
    for example in load(load_labelled, path).train:
        number = int(example.id.rpartition(":")[2])
        assert lines[number - 1].strip() == "{"
        assert '"messages"' in lines[number]
