"""YAML as kubectl reads it (sigs.k8s.io/yaml): 1e-5 is a number, `no` is false, 010 is 8, a date is
text; and a key stands once in a mapping.

PyYAML takes 1e-5 for text and 1:30 for a number, and lets a second key win in silence. Every error
here carries its line and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml
from rlhf_api.fields import path_text
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 64
_TAG: Final = "tag:yaml.org,2002:"

Position = tuple[int, int]
"""Line and column, counted from 1."""


class BadYaml(ValueError):
    """Text that is not the YAML of one object."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.position = position


class Document(NamedTuple):
    """A decoded document, and where each path of it stands in the text."""

    value: Any
    positions: dict[str, Position]


class _Loader(yaml.SafeLoader):
    """The safe loader with kubectl's types of what is not in quotes."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own protocol)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of names, each of which stands once."""
        seen: dict[Any, Node] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                hint = "a template such as {{ name }} has to be filled in before"
                raise BadYaml(f"a mapping or list stands for a key; {hint}", _position(key))
            name = key.value
            if (key.tag, name) in seen and name != "<<":
                first = _position(seen[key.tag, name])[0]
                raise BadYaml(
                    f"the key {name!r} stands twice in one mapping (first on line {first})",
                    _position(key),
                )
            seen[key.tag, name] = key
        return super().construct_mapping(node, deep)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(_TAG + tag, re.compile(pattern), list(first) or [""])


_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN")
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^$"), [""])
_resolve(
    "bool",
    r"^(?:true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|[yYnN])$",
    "tTfFyYnNoO",
)
_resolve(
    "int",
    r"^[-+]?(?:0[oO][0-7_]+|0[0-9_]+|0[xX][0-9a-fA-F_]+|0[bB][01_]+|0|[1-9][0-9_]*)$",
    "-+0123456789",
)
_resolve(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)
_resolve("merge", r"^<<$", "<")


def read_document(text: str) -> Document:
    """The one document of a text. Raises BadYaml with the place of the error."""
    try:
        loader = _Loader(text)
        nodes = [node for node in _nodes(loader) if not _is_empty(node)]
        if len(nodes) != 1:
            what = "is empty" if not nodes else f"holds {len(nodes)} documents; one RLHFJob a file"
            raise BadYaml(what, _position(nodes[1]) if nodes else None)
        _check_size(nodes[0])
        value = loader.construct_document(nodes[0])
        return Document(value, dict(_positions(nodes[0], ())))
    except yaml.MarkedYAMLError as error:
        raise _marked(error) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        position = (before.count("\n") + 1, error.position - before.rfind("\n"))
        raise BadYaml(f"the character {chr(error.character)!r} is not allowed", position) from None
    except RecursionError:
        raise BadYaml("is nested too deeply") from None


def read_value(text: str) -> Any:
    """One value as a field of a manifest would hold it. Raises BadYaml."""
    return read_document(text).value if text.strip() else None


def write_document(value: Any) -> str:
    """YAML that YAML 1.1 and 1.2 readers understand alike: text that either takes for a number,
    a truth value or a date is quoted, and text of several lines is a block.
    """
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


class _Dumper(yaml.SafeDumper):
    """YAML 1.1's implicit types, and YAML 1.2's beside them."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {  # noqa: RUF012
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Never `&id001`: people read this, and Kubernetes' own tools write none."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    return dumper.represent_scalar(_TAG + "str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _nodes(loader: _Loader) -> Iterator[Node]:
    while loader.check_node():
        if (node := loader.get_node()) is not None:
            yield node


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == _TAG + "null" and node.value == ""


def _check_size(root: Node) -> None:
    """Refuses what would grow without bound: aliases of aliases, an alias to its own parent."""
    stack, count = [(root, 0)], 0
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise BadYaml("is too large or nested too deeply", _position(node))
        if isinstance(node, MappingNode):
            stack += [(item, depth + 1) for pair in node.value for item in pair]
        elif isinstance(node, SequenceNode):
            stack += [(item, depth + 1) for item in node.value]


def _positions(node: Node, path: tuple[Any, ...]) -> Iterator[tuple[str, Position]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                inner = (*path, key.value)
                yield path_text(inner), _position(key)
                yield from _positions(value, inner)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield path_text((*path, index)), _position(value)
            yield from _positions(value, (*path, index))


def _position(node: Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _marked(error: yaml.MarkedYAMLError) -> BadYaml:
    mark = error.problem_mark or error.context_mark
    message = error.problem or error.context or "is not YAML"
    if "'\\t'" in message:
        message += "; indent with spaces, not tabs"
    return BadYaml(message, (mark.line + 1, mark.column + 1) if mark else None)


def _integer(loader: _Loader, node: ScalarNode) -> int:
    if len(node.value) > 100:  # more digits than any field has; int() itself refuses 4,300
        raise BadYaml("a number has too many digits", _position(node))
    digits = node.value.replace("_", "")
    if re.fullmatch("[-+]?0[0-9]+", digits):
        return int(digits, 8 if set(digits) <= set("-+01234567") else 10)
    return int(digits, 0)


def _truth(loader: _Loader, node: ScalarNode) -> bool:
    return node.value.lower() in ("true", "yes", "on", "y")


_Loader.add_constructor(_TAG + "int", _integer)
_Loader.add_constructor(_TAG + "bool", _truth)
