"""What `mkdocs build` does beside the pages: fields from the models, files of the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Final

import fields
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
SHOWN: Final = (
    "charts/*/values.yaml",
    "charts/*/files/*.yaml",
    "dashboards/*.json",
    "deploy/*.yaml",
    "examples/**/*.yaml",
    "gitops/**/*.yaml",
    "kustomize/overlays/**/*.yaml",
)
"""Files outside docs/ that pages link to; the site has copies below `repository/`."""
PLACE: Final = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page of all fields, and what pages link to."""
    files.append(File.generated(config, "reference/fields.md", content=fields.page()))
    for path in sorted(path for pattern in SHOWN for path in ROOT.glob(pattern)):
        name = f"{PLACE}/{path.relative_to(ROOT)}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ go to the copies."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, link[1]))
        if target.startswith("docs"):
            return link[0]
        return f"]({posixpath.relpath(posixpath.join(PLACE, target), folder or '.')})"

    return re.sub(r"\]\((\.\./[^)#:]+)\)", moved, markdown)
