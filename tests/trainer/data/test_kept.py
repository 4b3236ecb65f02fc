"""Encoded rows in a file: what comes back, what makes it stale, what becomes of damage."""

from __future__ import annotations

import logging
import os
import shutil
from array import array
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from data_files import jsonl
from rlhf_api.stages import SFTStage
from rlhf_trainer.data.encode import (
    Answer,
    Encoded,
    EncodedLabelled,
    EncodedPreference,
    EncodedPrompt,
    asked_text,
)
from rlhf_trainer.data.examples import Call, Extras, Message, Prompt
from rlhf_trainer.data.kept import Kept, key_of
from rlhf_trainer.data.load import Loaded
from rlhf_trainer.data.problems import BadRow
from rlhf_trainer.data.records import from_record, to_record
from rlhf_trainer.data.stage_rows import sft_rows
from rlhf_trainer.data.together import PARALLELISM

TOKENS, MASK = array("i", [1, 151643, 7]), b"\0\1\1"
ASKED = Prompt(
    "ü.jsonl:3",
    (
        Message("system", "S"),
        Message("assistant", "A", False, (Call("f", '{"x": 1}', "c1"),)),
        Message("tool", "2", name="f", call_id="c1"),
        Message("user", "你好 👩‍🔬"),
    ),
    {"prompt": "你好", "tests": [{"in": 1, "out": 2.5}], "hard": True, "none": None},
    Extras(({"name": "f"},), (("enable_thinking", False),)),
)
ROWS = [
    Encoded("a.jsonl:1", TOKENS, MASK),
    EncodedPreference(
        "a:1", TOKENS, [Answer(TOKENS, MASK), Answer(TOKENS[:1], b"\1")], (0, 1), 0.1
    ),
    EncodedLabelled("a:1", array("i"), Answer(TOKENS, MASK), False),
    EncodedPrompt(ASKED, TOKENS, asked_text(ASKED.messages)),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_as_it_was_and_as_compact(row: Any) -> None:
    found = from_record(type(row).__name__, to_record(row))
    assert found == row
    assert [type(part) for part in found] == [type(part) for part in row]


@pytest.mark.parametrize("value", [object(), (1, 2), {1: 2}, float("nan")])
def test_a_prompt_whose_row_json_cannot_hold_has_no_record(value: Any) -> None:
    row = EncodedPrompt(ASKED._replace(row={"x": value}), TOKENS, ROWS[3].text)
    with pytest.raises(ValueError, match=r"ü\.jsonl:3"):
        to_record(row)


LOADED = Loaded[Any](
    [Encoded(f"a:{i}", array("i", range(i + 1)), bytes([1] * (i + 1))) for i in range(5)],
    [Encoded("a:9", TOKENS, MASK)],
    [BadRow("a", 7, "`answer` is blank", "a hint")],
    ["other.jsonl"],
    ["a warning"],
)


def never(keep: Any) -> Any:
    raise AssertionError("the rows are read and encoded again")


def made(keep: Any) -> Loaded[Any]:
    return LOADED._replace(train=keep(LOADED.train), heldout=keep(LOADED.heldout))


def kept_in(path: Path, read: Any = never, key: str | None = "key", size: int = 100) -> Kept[Any]:
    return Kept[Any](path, key, read, lambda: size)


def the_same(found: Loaded[Any]) -> bool:
    return found._replace(train=[*found.train], heldout=[*found.heldout]) == LOADED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where rows are kept."""
    kept = kept_in(tmp_path / "rows/encoded", made)
    assert kept.fill()
    return kept.path


def test_rows_are_made_once_and_found_by_all_with_what_was_said_of_them(path: Path) -> None:
    another = kept_in(path)
    assert not another.fill()
    found = another.rows()
    assert the_same(found)
    assert found.train[-1] == LOADED.train[-1]
    assert [*found.train[1:3]] == LOADED.train[1:3]
    with pytest.raises(IndexError):
        found.heldout[1]


def test_rows_of_another_key_are_no_rows_and_are_written_over(path: Path) -> None:
    assert the_same(kept_in(path, made, "other").rows())
    assert kept_in(path, made, "other").fill()
    assert the_same(kept_in(path, key="other").rows())
    assert [file.name for file in path.parent.iterdir()] == ["encoded"]


def cut(content: bytes) -> bytes:
    return content[:-3]


def flipped(at: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        found = bytearray(content)
        found[at] ^= 4
        return bytes(found)

    return flip


DAMAGES = [cut, lambda content: b"", *map(flipped, (3, 64, 70, 200, -100, -30, -8, -1))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_passed_over_and_made_again(
    damage: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert the_same(kept_in(path, made).rows())
    assert "is passed over" in caplog.text
    assert kept_in(path, made).fill()
    assert the_same(kept_in(path).rows())


def test_one_process_uses_all_cpus_and_many_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PARALLELISM, "false")
    seen: list[str] = []

    def read(keep: Any) -> Loaded[Any]:
        seen.append(os.environ[PARALLELISM])
        return made(keep)

    kept_in(tmp_path / "encoded", read).fill()
    kept_in(tmp_path / "encoded", read, "other").rows()
    assert seen == ["true", "false"]


def test_a_disk_without_room_or_that_cannot_be_written_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert not kept_in(tmp_path / "file/encoded").fill()  # others read, too
    (tmp_path / "closed/.tmp-encoded").mkdir(parents=True)
    assert not kept_in(tmp_path / "closed/encoded").fill()
    free = shutil.disk_usage(tmp_path).free
    assert not kept_in(tmp_path / "encoded", size=free // 5).fill()
    monkeypatch.setattr("rlhf_trainer.data.kept.sync", full)
    reads = iter([made])
    here = kept_in(tmp_path / "encoded", lambda keep: next(reads)(keep))
    assert not here.fill()
    assert the_same(here.rows())  # whoever made them has them
    assert not [*tmp_path.glob("*encoded*")]
    assert kept_in(tmp_path / "encoded", made, key=None).rows().train == LOADED.train


def full(path: Path) -> None:
    raise OSError(28, "No space left on device")


def test_what_makes_other_rows_makes_another_key(tokenizer: Any, tmp_path: Path) -> None:
    def stage(**settings: Any) -> SFTStage:
        data = {"source": "data", **settings.pop("data", {})}
        return SFTStage.model_validate({"data": data, **settings})

    def key(digest: str = "sha256:1", own: Any = tokenizer, seed: int = 1, **settings: Any) -> Any:
        return key_of(sft_rows(stage(**settings)), digest, own, seed)

    template, words = deepcopy(tokenizer), deepcopy(tokenizer)
    template.chat_template += " "
    words.add_tokens(["lemon"])
    others = [
        key("sha256:2"),
        key(own=template),
        key(own=words),
        key(seed=2),
        key(maxLength=64),
        key(trainOn="all"),
        key(data={"overlong": "truncate"}),
        key(data={"columns": {"answer": "reply"}}),
        key(data={"onError": "skip"}),
        key(data={"limit": 5}),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key(learningRate=1.0, data={"secret": "token"})
    tokenizer.save_pretrained(tmp_path)  # as a stage hands it on
    for is_offline in (False, True):  # prepare is not, stages are
        loaded = type(tokenizer).from_pretrained(tmp_path, local_files_only=is_offline)
        assert key() == key(own=loaded)
    assert key_of(sft_rows(stage()), None, tokenizer, 1) is None


def test_rows_of_a_tokenizer_that_cannot_be_written_are_not_kept(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = deepcopy(tokenizer)
    monkeypatch.setattr(own, "save_pretrained", lambda _: never())
    jsonl(tmp_path / "a.jsonl", [{"prompt": "Q", "answer": "A"}])
    recipe = sft_rows(SFTStage.model_validate({"data": {"source": "a"}}))
    assert key_of(recipe, "sha256:1", own, 1) is None
