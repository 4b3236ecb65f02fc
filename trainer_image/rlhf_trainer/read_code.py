"""A function of the user's, as far as its file tells without being run: it may want a GPU, load a
model or write files as soon as it is imported, and `prepare` is not the stage.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from rlhf_api.stages.ppo import FunctionReward

from rlhf_trainer.errors import ConfigurationError, first_line

GIVEN: Final = 3
"""Arguments of a reward: prompts, answers, rows."""
UNREADABLE: Final = frozenset({"globals", "exec", "setattr", "vars", "locals", "__getattr__"})
"""What can give a module names that do not stand in it."""
Bound = ast.stmt | ast.expr | None


def refuse_unusable(function: FunctionReward, folder: Path) -> None:
    """ConfigurationError where loading the function, or calling it, is certain to fail. Its file is
    there."""
    module, _, name = function.entrypoint.partition(":")
    file = file_of(module, folder)
    assert file is not None
    try:
        tree = ast.parse(file.read_bytes(), file.name)
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL byte
        at = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else first_line(error)
        where = f"({file.name}{at})"
        raise ConfigurationError(f"{function.entrypoint}: SyntaxError: {said} {where}") from None
    bound = [value for other, value in _bound(tree.body) if other == name]
    reason = _unusable(bound[-1]) if bound else None
    if not bound and not _may_bind_more(tree, name):
        reason = f"module {module} has no function {name}{_others(tree)}"
    if reason:
        raise ConfigurationError(f"{function.entrypoint}: {reason}")


def missing_imports(function: FunctionReward, folder: Path) -> list[str]:
    """Modules that the file imports as it is loaded, and that are neither here nor beside it."""
    file = file_of(function.entrypoint.partition(":")[0], folder)
    assert file is not None
    tree = ast.parse(file.read_bytes(), file.name)
    roots = {name.partition(".")[0]: None for node in tree.body for name in _imported(node)}
    return [root for root in roots if not _is_there(root, folder)]


def file_of(module: str, folder: Path) -> Path | None:
    """The file of a module in a folder, or of a package."""
    path = folder.joinpath(*module.split("."))
    files = path / "__init__.py", path.with_name(f"{path.name}.py")
    return next((file for file in files if file.is_file()), None)


def _imported(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def _is_there(root: str, folder: Path) -> bool:
    if root in sys.stdlib_module_names or (folder / root).is_dir() or file_of(root, folder):
        return True
    try:
        return find_spec(root) is not None
    except (ImportError, ValueError):  # a module that is half there
        return False


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, Bound]]:
    """Names that a module's statements bind, with what: a definition, a value, or None where that
    is not to be seen."""
    for node in body:
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield name, node
            case ast.Assign(targets, value):
                yield from ((t.id, value) for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                yield name, value
            case ast.Import(names) | ast.ImportFrom(_, names):
                yield from (((a.asname or a.name).partition(".")[0], None) for a in names)
            case _:
                yield from _bound_within(node)


def _bound_within(node: ast.stmt) -> Iterator[tuple[str, Bound]]:
    """In the branches of an `if`, a `try`, a loop; and in whatever else binds a name."""
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name, None
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, None
        elif isinstance(child, ast.alias):
            yield (child.asname or child.name).partition(".")[0], None


def _unusable(value: Bound) -> str | None:
    match value:
        case ast.AsyncFunctionDef():
            return "it is async, and is called as a plain function"
        case ast.Constant() | ast.List() | ast.Dict() | ast.Tuple() | ast.JoinedStr():
            return f"it is no function, but {ast.unparse(value)[:40]}"
        case ast.FunctionDef(decorator_list=[]) if not _takes(value.args, GIVEN):
            return f"it is called with {GIVEN} arguments: prompts, answers, rows"
    return None


def _takes(arguments: ast.arguments, count: int) -> bool:
    places = len(arguments.posonlyargs) + len(arguments.args)
    needed = places - len(arguments.defaults)
    has_all = all(default is not None for default in arguments.kw_defaults)
    return has_all and needed <= count and (places >= count or arguments.vararg is not None)


def _may_bind_more(tree: ast.Module, name: str) -> bool:
    for node in ast.walk(tree):
        match node:
            case ast.alias("*"):
                return True
            case ast.Name(other) | ast.Attribute(_, other) | ast.FunctionDef(other):
                if other in UNREADABLE:
                    return True
            case ast.Global(names) if name in names:
                return True
    return False


def _others(tree: ast.Module) -> str:
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return f"; it has {', '.join(names[:8])}" if names else ""
