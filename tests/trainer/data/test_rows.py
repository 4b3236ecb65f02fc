"""Files to rows: every kind of file, what is harmless, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import jsonl, load, write
from rlhf_trainer.data import json_rows
from rlhf_trainer.data.load import load_dialogues, load_language
from rlhf_trainer.errors import BadData

ROWS = [{"prompt": f"问题 {i}？", "answer": f"答案 {i} 👩‍🔬"} for i in range(5)]
SAID = [row["answer"] for row in ROWS]


def answers(path: Path, **fields: Any) -> list[str]:
    return [row.messages[-1].content for row in load(load_dialogues, path, **fields).train]


def lines(*, count: int = 5, ending: str = "\n") -> list[str]:
    return [json.dumps(row, ensure_ascii=False) + ending for row in ROWS[:count]]


def csv_text() -> str:
    return "prompt,answer\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS)


def zstd(text: str) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(text.encode())
    return bytes(packed.getvalue())


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("b.arrow", "c.feather"):
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as file:
            file.write_table(table)
    text = "".join(lines())
    files = [
        tmp_path / "a.parquet",
        tmp_path / "a.arrow",
        tmp_path / "b.arrow",
        tmp_path / "c.feather",
        write(tmp_path / "a.jsonl", text),
        write(tmp_path / "a.ndjson", text),
        write(tmp_path / "per-line.json", text),
        write(tmp_path / "array.json", json.dumps(ROWS)),
        write(tmp_path / "pretty.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        write(tmp_path / "one-by-one.json", "\n".join(json.dumps(r, indent=1) for r in ROWS)),
        write(tmp_path / "a.csv", csv_text()),
        write(tmp_path / "excel.csv", "\ufeff" + csv_text().replace(",", ";")),
        write(tmp_path / "a.tsv", csv_text().replace(",", "\t")),
        write(tmp_path / "a.jsonl.gz", gzip.compress(text.encode())),
        write(tmp_path / "b.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        write(tmp_path / "c.CSV.gz", gzip.compress(csv_text().encode())),
        write(tmp_path / "a.jsonl.zst", zstd(text)),
        write(tmp_path / "b.json.zst", zstd(json.dumps(ROWS))),
        write(tmp_path / "c.csv.zst", zstd(csv_text())),
    ]
    assert {file.name: answers(file) for file in files} == {file.name: SAID for file in files}


def test_ids_name_file_and_line(tmp_path: Path) -> None:
    array = write(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    assert [row.id for row in load(load_dialogues, array).train][:3] == [
        "a.json:2",
        "a.json:6",
        "a.json:10",
    ]
    blank = write(tmp_path / "a.jsonl", "\n" + "\n\n".join(line.strip() for line in lines()))
    assert [row.id for row in load(load_dialogues, blank).train][:2] == ["a.jsonl:2", "a.jsonl:4"]


def test_plain_text_is_one_row_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\r\n\n 二 \n")
    assert [row.text for row in load(load_language, path).train] == ["one", " 二 "]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_byte_order_mark_crlf_and_a_missing_last_newline_are_harmless(
    name: str, bom: bytes, ending: str, tmp_path: Path
) -> None:
    content = bom + "".join(lines(ending=ending)).removesuffix(ending).encode()
    assert answers(write(tmp_path / name, content)) == SAID


def test_csv_with_byte_order_mark_and_crlf_leaks_neither(tmp_path: Path) -> None:
    text = 'prompt,answer\r\nq,"two\r\nlines, ""quoted"""\r\n'
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode())
    row = load(load_dialogues, path).train[0]
    assert [turn.content for turn in row.messages] == ["q", 'two\nlines, "quoted"']
    assert row.id == "a.csv:2"


UNICODE = "e\u0301 é ﬁ Å 汉字 漢字 𠮷 🇨🇳 👨‍👩‍👧‍👦 \u200f‏שלום\u00a0\u3000x\u2028y\ufeff"


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_unicode_survives_code_point_by_code_point(
    name: str, escaped: bool, tmp_path: Path
) -> None:
    """Surrogate pairs in escapes, joiners, marks that a normalisation would fold."""
    row = json.dumps({"prompt": "q", "answer": UNICODE}, ensure_ascii=escaped)
    text = f"[{row}]" if name == "a.json" else row + "\n"
    assert answers(write(tmp_path / name, text)) == [UNICODE]


def test_unicode_survives_parquet_and_csv(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"q": "q", "prompt": "p", "answer": UNICODE}]), tmp_path / "a.parquet"
    )
    assert answers(tmp_path / "a.parquet") == [UNICODE]
    assert answers(write(tmp_path / "a.csv", f'prompt,answer\np,"{UNICODE}"\n')) == [UNICODE]


GOOD = lines()
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "a row that breaks off": (b'{"prompt": "x", "answer":\n', "bad JSON at column 26"),
    "bad JSON": (b'{"prompt": "x", "answer": }\n', "bad JSON at column 27"),
    "NUL byte": (b'{"prompt": "x\x00", "answer": "y"}\n', "NUL byte"),
    "escaped NUL": (b'{"prompt": "x\\u0000", "answer": "y"}\n', "NUL character"),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe", "answer": "y"}\n', "invalid UTF-8"),
    "cut character": (b'{"prompt": "\xe4\xbd", "answer": "y"}\n', "invalid UTF-8"),
    "half a surrogate pair": (b'{"prompt": "\\ud83d", "answer": "y"}\n', "surrogate"),
    "array": (b'["x", "y"]\n', "the row is a list, not an object"),
    "text": (b'"x"\n', "the row is a string, not an object"),
    "number": (b"1.5\n", "the row is a number, not an object"),
    "null": (b"null\n", "the row is null, not an object"),
    "NaN": (b'{"prompt": "x", "answer": NaN}\n', "NaN is no JSON"),
    "a key that stands twice": (
        b'{"prompt": "x", "answer": "y", "answer": "z"}\n',
        "`answer` stands twice in one object",
    ),
    "two objects": (b'{"prompt": "x"} {"answer": "y"}\n', "Extra data"),
    "deep nesting": (b"[" * 100_000 + b"\n", "bad JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_refused_with_file_line_and_reason(case: str, tmp_path: Path) -> None:
    bad, reason = BAD_LINES[case]
    content = GOOD[0].encode() + GOOD[1].encode() + bad + GOOD[2].encode()
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(BadData) as refusal:
        load(load_dialogues, path)
    message = str(refusal.value)
    assert "1 of 4 rows cannot be used" in message
    assert "a.jsonl:3: " in message
    assert reason in message
    allowed = load(load_dialogues, path, on_error="skip", max_skipped_fraction=0.25)
    assert len(allowed.train) == 3
    assert [(row.file, row.line) for row in allowed.skipped] == [("a.jsonl", 3)]


def test_a_cut_off_last_line_is_told_from_a_broken_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(GOOD)[:-12])
    with pytest.raises(BadData, match=r"a\.jsonl:5: the file ends in the middle of a row"):
        load(load_dialogues, path)


def test_a_line_of_100_mb_is_refused_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD[0].encode() + b'{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'", "answer": "y"}\n' + GOOD[1].encode())
    with pytest.raises(BadData, match=r"a\.jsonl:2: the line is longer than 32 MiB"):
        load(load_dialogues, path)
    skipped = load(load_dialogues, path, on_error="skip", max_skipped_fraction=0.5)
    assert [row.messages[-1].content for row in skipped.train] == SAID[:2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            '[\n{"prompt": "a", "answer": "b"},\n{"prompt": "c" "answer": 1}\n]',
            "a.json:3: bad JSON",
        ),
        ('[\n{"prompt": "a", "answer": "b"}\n{"prompt": "c"}]', "a.json:3: .*a comma is missing"),
        ('[\n{"prompt": "a", "answer": "b"},\n]', "a.json:3: .*a comma before the closing"),
        ('[\n{"prompt": "a", "answer": "b"}', "a.json:2: the file ends before the array"),
        ('[\n{"prompt": "a",\n "answer": "b', "a.json:2: the file ends in the middle of the row"),
        ('[{"prompt": "a", "answer": "b"}]\n{}', "a.json:2: something follows the closing"),
        (b'[\n{"prompt": "a", "answer": "\xff"}]', "a.json:2: invalid UTF-8"),
        ('[\n{"prompt": "a",\n "answer": "\x00"}]', "a.json:3: the file holds a NUL byte"),
        ('[\n{"prompt": "a", "answer": "b"}, 7]', "a.json:2: the row is a number"),
        ("[]", "the file holds no rows"),
        ("", "the file holds no rows"),
        (" \n\n", "the file holds no rows"),
    ],
)
def test_a_broken_json_array_is_refused_with_its_line(
    content: str | bytes, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(BadData, match=reason.replace(".json", r"\.json")):
        load(load_dialogues, path)


def test_after_a_break_in_an_array_nothing_is_skipped(tmp_path: Path) -> None:
    """Nobody knows how many rows were lost."""
    path = write(tmp_path / "a.json", '[{"prompt": "a", "answer": "b"}, {"prompt" 1}]')
    with pytest.raises(BadData, match="bad JSON"):
        load(load_dialogues, path, on_error="skip", max_skipped_fraction=1.0)


def test_an_array_is_read_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 7)  # cuts characters, numbers and rows alike
    rows = [
        {"prompt": "问" * 9, "answer": f"{i}答", "n": 123456.75, "deep": [{"a": [i]}]}
        for i in range(9)
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    found = load(load_dialogues, write(tmp_path / "a.json", text)).train
    assert [row.messages[-1].content for row in found] == [f"{i}答" for i in range(9)]
    starts = [n for n, line in enumerate(text.splitlines(), 1) if line == " {"]
    assert [int(row.id.split(":")[1]) for row in found] == starts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt,answer\na,b\nc\n", "a.csv:3: 1 cells under 2 columns"),
        ("prompt,answer\na,b\nc,d,e\n", "a.csv:3: 3 cells under 2 columns"),
        ('prompt,answer\na,b\nc,"open\n', "a.csv:3: bad CSV in the row that starts here"),
        ("prompt,prompt\na,b\n", "repeated columns"),
        ("prompt,answer\na,\x00\n", "a.csv:2: the text holds a NUL"),
        (b"prompt,answer\na,b\n\xff,d\n", "a.csv:3: the text is not valid UTF-8"),
        ("prompt,answer\n", "holds no rows"),
    ],
)
def test_bad_csv_is_refused_with_its_line(text: str | bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=reason):
        load(load_dialogues, write(tmp_path / "a.csv", text))


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for path in (
        write(tmp_path / "cut.parquet", whole[:-20]),
        write(tmp_path / "cut.jsonl.gz", gzip.compress("".join(GOOD).encode())[:-20]),
        write(tmp_path / "cut.jsonl.zst", zstd("".join(GOOD))[:-5]),
        write(tmp_path / "none.jsonl.zst", b"{}"),
        write(tmp_path / "none.jsonl.gz", b"{}"),
        write(tmp_path / "text.arrow", b"{}"),
    ):
        with pytest.raises(BadData, match=path.name):
            load(load_dialogues, path)


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="UTF-16"):
        load(load_dialogues, write(tmp_path / "a.jsonl", GOOD[0].encode("utf-16")))


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name, row in (("b.jsonl", ROWS[1]), ("a/z.jsonl", ROWS[0]), ("c.json", ROWS[2])):
        jsonl(tmp_path / name, [row])
    write(tmp_path / "README.md", "not data")
    write(tmp_path / "dataset_infos.json", "{}")
    write(tmp_path / ".cache/x.jsonl", "broken")
    found = load(load_dialogues, tmp_path).train
    assert [row.id for row in found] == ["a/z.jsonl:1", "b.jsonl:1", "c.json:1"]


def test_files_of_another_split_are_left(tmp_path: Path) -> None:
    jsonl(tmp_path / "helpful-base/train.jsonl", ROWS[:1])
    jsonl(tmp_path / "helpful-base/test.jsonl", ROWS[1:2])
    jsonl(tmp_path / "data/train-00000-of-00001.jsonl", ROWS[2:3])
    assert sorted(answers(tmp_path)) == [SAID[0], SAID[2]]
    assert answers(tmp_path, split="test") == [SAID[1]]
    only = jsonl(tmp_path / "other/eval_prompts.jsonl", ROWS[:1]).parent
    assert answers(only) == [SAID[0]]  # nothing to choose from


def test_files_that_name_no_split_are_for_training(tmp_path: Path) -> None:
    for name, row in (("dolly", ROWS[0]), ("dolly-test", ROWS[1]), ("train", ROWS[2])):
        jsonl(tmp_path / f"{name}.jsonl", [row])
    assert sorted(answers(tmp_path)) == sorted([SAID[0], SAID[2]])
    assert answers(tmp_path, split="test") == [SAID[1]]
    (tmp_path / "train.jsonl").unlink()
    assert answers(tmp_path) == [SAID[0]]


def test_a_split_is_named_as_hugging_face_names_it(tmp_path: Path) -> None:
    """Its words stand between - . _ spaces and digits; a folder counts before a file."""
    others = ("my_self_eval", "test2", "my dev file", "eval-notes", "Test.en", "val/train")
    read = ("latest", "evals", "détest", "训练test集", "contrain", "train1", "train/eval questions")
    for name in (*others, *read):
        jsonl(tmp_path / f"{name}.jsonl", ROWS[:1])
    found = load(load_dialogues, tmp_path)
    assert {row.id for row in found.train} == {f"{name}.jsonl:1" for name in read}
    assert set(found.unread) == {f"{name}.jsonl" for name in others}


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("dolly.jsonl", "self_eval.jsonl", "test.jsonl"):
        jsonl(tmp_path / name, ROWS[:1])
    for name in ("more.jsonl.xz", "README.md", "LICENSE", ".hidden", "dataset_infos.json"):
        write(tmp_path / name, b"x")
    found = load(load_dialogues, tmp_path)
    assert list(found.unread) == ["more.jsonl.xz", "self_eval.jsonl", "test.jsonl"]
    found = load(load_dialogues, tmp_path, eval_source="its/source")
    assert list(found.unread) == ["more.jsonl.xz"]
    assert not load(load_dialogues, tmp_path / "dolly.jsonl").unread


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (tmp_path / "no.jsonl", "no such file"),
        (tmp_path / "empty", "no data file"),
        (write(tmp_path / "a.docx", b"x"), "unknown kind of file"),
    ):
        with pytest.raises(BadData, match=reason):
            load(load_dialogues, path)
