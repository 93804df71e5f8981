"""Draws docs/map.svg, the wings of the package and what imports what, from the imports in its source: `make docs`.

An arrow leads from a wing to one that it imports; left out are those that another way of arrows says already. A row
holds what imports nothing of its own row.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pera_lightning"
PICTURE = ROOT / "docs" / "map.svg"
# Where names of earlier versions lead on; the entry point.
LEFT_OUT = {"integration", "__main__", "__init__"}
BASICS = "config, errors, ..."
"""The single files below everything, in one box."""
BOX, GAP, ROW = (190, 58), 26, 118


def wings() -> dict[str, str]:
    """Name of each wing -> the first sentence of what it says of itself."""
    found = {}
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        if folder.name not in LEFT_OUT:
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
            found[folder.name] = text.split("\n")[0]
    return {**found, BASICS: "What users configure and catch; single files."}


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
    edges, sayings = imports(), wings()
    rows: dict[int, list[str]] = defaultdict(list)
    for wing, row in heights(edges).items():
        rows[row].append(wing)
    width = max(map(len, rows.values())) * (BOX[0] + GAP) + 4 * GAP
    height = len(rows) * ROW + GAP
    place = {}
    for row, members in rows.items():
        left = (width - len(members) * (BOX[0] + GAP) + GAP) / 2
        for index, wing in enumerate(sorted(members)):
            place[wing] = (left + index * (BOX[0] + GAP), height - (row + 1) * ROW + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#888"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
    ]
    for wing, other in reduced(edges):
        (x, y), (to_x, to_y) = place[wing], place[other]
        lines.append(f'<path d="{_way(x, y, to_x, to_y)}" fill="none" stroke="#888" marker-end="url(#head)"/>')
    for wing, (x, y) in sorted(place.items()):
        lines += [
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="#eef3fb" stroke="#456"/>',
            f'<text x="{x + BOX[0] / 2:.0f}" y="{y + 25:.0f}" text-anchor="middle" font-size="16" font-weight="bold">'
            f"{escape(wing)}</text>",
            f'<text x="{x + BOX[0] / 2:.0f}" y="{y + 44:.0f}" text-anchor="middle" font-size="11" fill="#345">'
            f"{_files(wing)}</text>",
            f"<title>{escape(wing)}: {escape(sayings[wing])}</title>",
        ]
    return "\n".join([*lines, "</svg>", ""])


def _way(x: float, y: float, to_x: float, to_y: float) -> str:
    if to_y - y == ROW:
        return f"M{x + BOX[0] / 2:.0f},{y + BOX[1]:.0f} L{to_x + BOX[0] / 2:.0f},{to_y - 2:.0f}"
    # Past the rows between, on the side where the other one is.
    side = -1 if to_x < x else 1
    x, to_x = (x, to_x) if side < 0 else (x + BOX[0], to_x + BOX[0])
    y, to_y = y + BOX[1] / 2, to_y + BOX[1] / 2
    bend = (min if side < 0 else max)(x, to_x) + side * (20 + (to_y - y) / 12)
    return f"M{x:.0f},{y:.0f} C{bend:.0f},{y:.0f} {bend:.0f},{to_y:.0f} {to_x + 2 * side:.0f},{to_y:.0f}"


def _files(wing: str) -> str:
    folder = PACKAGE if wing == BASICS else PACKAGE / wing
    files = folder.glob("*.py") if wing == BASICS else folder.rglob("*.py")
    count = sum(path.stem not in LEFT_OUT for path in files)
    return f"{count} files"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
