"""Writing the report of a run."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from rlhf_cli.failures import IO_ERROR, Failure
from rlhf_cli.program import program
from rlhf_cli.report.collect import collect
from rlhf_cli.run_folder import RunFolder


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Write report.html of the folder, or another file, and return its path. Raises Failure."""
    run = collect(folder)
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise Failure(
            f"the report needs {' and '.join(missing)}: pip install 'rlhf-operator[report]', "
            f"then '{program()} report' again"
        )
    from rlhf_cli.report.page import render_report

    file = out or folder.report
    _write(file, render_report(run))
    return file


def _write(file: Path, text: str) -> None:
    """Whole or not at all, by a draft that is nobody's file. Raises Failure."""
    if file.is_dir():
        raise Failure(f"{file} is a folder: name a file in it")
    draft = file.with_name(f".{file.name}.part")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise Failure(f"{file}: {error.strerror}", exit_code=IO_ERROR) from None
