"""Draws docs/map.svg, the wings of the package and what imports what, from the imports in its source: `make docs`.

A box holds a wing's name, what its `__init__.py` says first, its folders, and what is added there, by the table of
CONTRIBUTING.md. An arrow leads from a wing to one that it imports; left out are those that another way of arrows says
already. A row holds what imports nothing of its own row.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pera_lightning"
PICTURE = ROOT / "docs" / "map.svg"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
# Where names of earlier versions lead on; the entry point.
LEFT_OUT = {"integration", "__main__", "__init__"}
BASICS = "config, errors, ..."
"""The single files below everything, in one box."""
WIDTH, MARGIN, GAP, ROW_GAP, LINE = 1240, 70, 22, 34, 15
BOX_WIDTHS = {1: 640, 2: 500}
"""Of a row with so many boxes; more of them share the width."""
STYLES = {
    "name": 'font-size="16" font-weight="bold" fill="#123"',
    "says": 'font-size="12" fill="#345"',
    "folders": 'font-size="12" fill="#777"',
    "added": 'font-size="12" fill="#276738"',
}


class Box(NamedTuple):
    """Where a wing is drawn."""

    x: float
    y: float
    width: float
    height: float


def wings() -> dict[str, str]:
    """Name of each wing -> the first sentence of what it says of itself."""
    found = {}
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        if folder.name not in LEFT_OUT:
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
            found[folder.name] = text.split("\n")[0]
    return {**found, BASICS: "What users configure and catch; single files."}


def additions() -> dict[str, list[str]]:
    """Wing -> what is added there, by the table of CONTRIBUTING.md."""
    found: dict[str, list[str]] = defaultdict(list)
    known = wings()
    for what, where in re.findall(r"^\| (an? [^|]*?) \| ([^|]*) \|", CONTRIBUTING.read_text("utf-8"), re.MULTILINE):
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", where):
            wing = path.split("/")[0]
            wing = wing if wing in known else BASICS
            if (PACKAGE / path).exists() and what not in found[wing]:
                found[wing].append(what)
    return dict(found)


def imports() -> dict[str, set[str]]:
    """Wing -> the wings that its files import."""
    found: dict[str, set[str]] = defaultdict(set)
    known = wings()
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in LEFT_OUT:
            continue
        own = own if own in known else BASICS
        for other in _imported(path):
            other = other if other in known else BASICS
            if other != own and own != BASICS:
                found[own].add(other)
    return dict(found)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pera_lightning."):
            yield node.module.split(".")[1]


def heights(edges: dict[str, set[str]]) -> dict[str, int]:
    """Wing -> its row: one above the highest that it imports."""
    found: dict[str, int] = {}

    def height(wing: str) -> int:
        if wing not in found:
            found[wing] = 1 + max((height(other) for other in edges.get(wing, ())), default=-1)
        return found[wing]

    for wing in wings():
        height(wing)
    return found


def reduced(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no way of other arrows says."""

    def below(wing: str) -> set[str]:
        return {further for other in edges.get(wing, ()) for further in (other, *below(other))}

    return sorted(
        (wing, other)
        for wing, others in edges.items()
        for other in others
        if not any(other in below(between) for between in others if between != other)
    )


def picture() -> str:
    """The drawing for the package as it is now."""
    edges = imports()
    rows: dict[int, list[str]] = defaultdict(list)
    for wing, row in heights(edges).items():
        rows[row].append(wing)
    texts, boxes, y = {}, {}, float(GAP)
    for row in sorted(rows, reverse=True):
        members = sorted(rows[row])
        width = BOX_WIDTHS.get(len(members), (WIDTH - 2 * MARGIN + GAP) / len(members) - GAP)
        texts |= {wing: _text(wing, width) for wing in members}
        height = max(len(texts[wing]) for wing in members) * LINE + 16
        left = (WIDTH - len(members) * (width + GAP) + GAP) / 2
        for index, wing in enumerate(members):
            boxes[wing] = Box(left + index * (width + GAP), y, width, height)
        y += height + ROW_GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#888"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{y:.0f}" fill="#fff"/>',
    ]
    for wing, other in reduced(edges):
        way = _way(boxes[wing], boxes[other])
        lines.append(f'<path d="{way}" fill="none" stroke="#888" marker-end="url(#head)"/>')
    for wing, box in sorted(boxes.items()):
        lines.append(
            f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height}" rx="6" '
            'fill="#eef3fb" stroke="#456"/>'
        )
        for number, (style, words) in enumerate(texts[wing], start=1):
            place = f'x="{box.x + 12:.0f}" y="{box.y + 6 + number * LINE:.0f}"'
            lines.append(f"<text {place} {STYLES[style]}>{escape(words)}</text>")
    return "\n".join([*lines, "</svg>", ""])


def _text(wing: str, width: float) -> list[tuple[str, str]]:
    """The lines of a box, each with its style."""
    folders = "" if wing == BASICS else " ".join(f"{path.parent.name}/" for path in _inner(wing))
    paragraphs = {
        "name": wing if wing == BASICS else f"{wing}/",
        "says": wings()[wing].replace("`", ""),
        "folders": f"{_files(wing)}{': ' if folders else ''}{folders}",
        "added": ", ".join(f"+ {what}" for what in additions().get(wing, ())),
    }
    # Letters of that size are about as wide.
    most = int((width - 20) / 6.8)
    return [(style, line) for style, text in paragraphs.items() for line in textwrap.wrap(text, most)]


def _way(start: Box, end: Box) -> str:
    x, to_x = start.x + start.width / 2, end.x + end.width / 2
    if end.y - start.y == start.height + ROW_GAP:
        return f"M{x:.0f},{start.y + start.height:.0f} L{to_x:.0f},{end.y - 2:.0f}"
    # Past the rows between, on the side where the other one is.
    side = -1 if to_x < x else 1
    x, to_x = (start.x, end.x) if side < 0 else (start.x + start.width, end.x + end.width)
    y, to_y = start.y + start.height / 2, end.y + end.height / 2
    bend = (min if side < 0 else max)(x, to_x) + side * (30 + (to_y - y) / 16)
    return f"M{x:.0f},{y:.0f} C{bend:.0f},{y:.0f} {bend:.0f},{to_y:.0f} {to_x + 2 * side:.0f},{to_y:.0f}"


def _inner(wing: str) -> list[Path]:
    return sorted((PACKAGE / wing).glob("*/__init__.py"))


def _files(wing: str) -> str:
    folder = PACKAGE if wing == BASICS else PACKAGE / wing
    files = folder.glob("*.py") if wing == BASICS else folder.rglob("*.py")
    count = sum(path.stem not in LEFT_OUT for path in files)
    return f"{count} files"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
