"""Writing the report of a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rlhf_cli.failures import Failure
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

    text = render_report(run)
    file = out or folder.report
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(file)
    return file
