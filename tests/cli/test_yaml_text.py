"""Manifests are read as Kubernetes reads them, and refused with line and column."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from rlhf_cli.yaml_text import BadYaml, Position, read_document, read_value, write_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2.0e-3", 2e-3),
        (".5", 0.5),
        ("-3", -3),
        ("0x1f", 31),
        ("true", True),
        ("no", False),
        ("on", True),
        ("y", True),
        ("Off", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("2026-01-05", "2026-01-05"),
        ("1:30", "1:30"),
        ("010", 8),
        ("-010", -8),
        ("09", 9),
        ("0o17", 15),
        ("0b11", 3),
        ("1_000", 1000),
        ("+5", 5),
        ("'no'", "no"),
        ("'1e-5'", "1e-5"),
        ("蜜蜂", "蜜蜂"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("", None),
    ],
)
def test_a_value_is_read_as_kubectl_reads_it(text: str, value: Any) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", (3, 1), "the key 'a' stands twice in one mapping (first on line 1)"),
        ("a:\n  b: {c: 1, c: 2}\n", (2, 13), "the key 'c' stands twice"),
        ("a: {{ b }}\n", (1, 5), "a template such as {{ name }} has to be filled in before"),
        ("a: 1\n---\nb: 2\n", (3, 1), "holds 2 documents"),
        ("a: [1, 2\n", (2, 1), "expected ',' or ']'"),
        ("a:\n\tb: 1\n", (2, 1), "indent with spaces, not tabs"),
        ("a: 1\nb: \0\n", (2, 4), "'\\x00' is not allowed"),
        ("a: !!python/object:os.system {}\n", (1, 4), "could not determine a constructor"),
        ("a: *nothing\n", (1, 4), "undefined alias"),
        (f"a: {'9' * 5000}\n", (1, 4), "too many digits"),
        ("", None, "is empty"),
        ("# a comment\n", None, "is empty"),
        ("{" * 2000, None, "nested too deeply"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_place(
    text: str, position: Position | None, message: str
) -> None:
    with pytest.raises(BadYaml) as caught:
        read_document(text)
    assert message in str(caught.value)
    assert caught.value.position == position


def test_aliases_that_grow_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(BadYaml, match="too large"):
        read_document("\n".join(lines))


def test_an_alias_to_its_own_parent_is_refused() -> None:
    with pytest.raises(BadYaml, match="nested too deeply"):
        read_document("a: &a [*a]\n")


def test_an_anchor_that_is_used_twice_is_fine() -> None:
    assert read_document("a: &x {b: 1}\nc: *x\n").value == {"a": {"b": 1}, "c": {"b": 1}}


def test_windows_line_ends_and_a_trailing_separator_are_fine() -> None:
    assert read_document("a: 1\r\nb: 2\r\n---\r\n").value == {"a": 1, "b": 2}


def test_each_field_has_its_place() -> None:
    positions = read_document("a:\n  b: [1, {c: 2}]\n").positions
    assert positions == {
        "a": (1, 1),
        "a.b": (2, 3),
        "a.b[0]": (2, 7),
        "a.b[1]": (2, 10),
        "a.b[1].c": (2, 11),
    }


@pytest.mark.parametrize("text", ["1e5", "no", "010", "null", "1.0", "2026-01-05", "a\nb", "0x1f"])
def test_text_that_looks_like_something_else_is_read_back_as_text_by_both_versions(
    text: str,
) -> None:
    written = write_document({"value": text})
    assert read_document(written).value == {"value": text}
    assert yaml.safe_load(written) == {"value": text}
