"""The blocks of code in the README and in the site's pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


@dataclass(frozen=True)
class Fence:
    """A block between fences."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def parsed(page: Path) -> list:
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


def fences(language: str) -> list[Fence]:
    """All blocks in a language; the empty one is output of commands."""
    return [
        Fence(page.relative_to(ROOT).as_posix(), token.map[0] + 1, token.info, token.content)
        for page in PAGES
        for token in parsed(page)
        if token.type == "fence" and token.info == language
    ]


def code_in_text(page: Path) -> list[str]:
    """What stands between backticks within the text of a page."""
    return [
        child.content
        for token in parsed(page)
        for child in token.children or ()
        if token.type == "inline" and child.type == "code_inline"
    ]
