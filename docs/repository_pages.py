"""A hook of MkDocs: files outside docs/ that pages link to become pages of the site, and the links lead there.

A page's links are written as they work in the repository, such as `../configs/quickstart.yaml`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
STARTS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the navigation that lie outside docs/."""
PLACE = "repository"
"""The site's folder for such pages."""
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+)((?:#[^)\s]*)?)\)")
PROSE = (".md", ".ipynb")
LANGUAGES = {".py": "python", ".sbatch": "bash", ".yaml": "yaml", ".json": "json", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    todo = [ROOT / name for name in STARTS]
    for file in files.documentation_pages():
        todo += outside(Path(config.docs_dir) / file.src_uri, file.content_string)
    done = set()
    while todo:
        path = todo.pop()
        if path not in done:
            done.add(path)
            text = page_of(path)
            files.append(File.generated(config, address(path), content=text))
            todo += outside(path, text) if path.suffix in PROSE else members(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the page's links lead to pages of the site."""
    path = place(page.file.src_uri)
    if path.suffix not in PROSE:
        return markdown

    def led(match: re.Match[str]) -> str:
        target = linked(path, match[1])
        if target is None:
            return match[0]
        way = os.path.relpath(address(target), PurePosixPath(page.file.src_uri).parent)
        return f"]({PurePosixPath(way)}{match[2]})"

    return LINK.sub(led, markdown)


def outside(path: Path, text: str) -> Iterator[Path]:
    """What a page links to outside docs/."""
    for target, _ in LINK.findall(text):
        found = linked(path, target)
        if found is not None and not found.is_relative_to(ROOT / "docs"):
            yield found


def linked(path: Path, target: str) -> Path | None:
    """The file or folder of the repository that a link of this file means."""
    found = (path.parent / target).resolve()
    return found if found.exists() and found.is_relative_to(ROOT) else None


def address(path: Path) -> str:
    """Where a file of the repository is in the site's sources."""
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"{PLACE}/{name}{'/index.md' if path.is_dir() else '' if path.suffix == '.md' else '.md'}"


def place(source: str) -> Path:
    """The file of the repository that a source of the site shows."""
    if not source.startswith(f"{PLACE}/"):
        return ROOT / "docs" / source
    path = ROOT / source.removeprefix(f"{PLACE}/")
    return path if path.is_file() else path.parent if path.name == "index.md" else path.with_suffix("")


def members(path: Path) -> list[Path]:
    """The files and folders in a folder."""
    shown = path.iterdir() if path.is_dir() else ()
    return sorted(member for member in shown if not member.name.startswith((".", "__")))


def page_of(path: Path) -> str:
    """A Markdown file as it is; a notebook's cells; a folder's list; any other text as a block of code."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    if path.suffix == ".ipynb":
        return "\n\n".join(map(cell_text, json.loads(path.read_text("utf-8"))["cells"]))
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        way = os.path.relpath
        lines = [f"- [{member.name}]({way(address(member), f'{PLACE}/{name}')})" for member in members(path)]
    else:
        lines = [f"~~~~~~{LANGUAGES.get(path.suffix, 'text')}", path.read_text("utf-8").rstrip(), "~~~~~~"]
    return "\n".join(["---", "search:", "  exclude: true", "---", "", f"# {name}", "", *lines, ""])


def cell_text(cell: dict[str, Any]) -> str:
    """A cell of a notebook as Markdown; its output is left out."""
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
