"""Tables for the screen whose cells show what is in them: no markup, no links, no control characters."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from pera_lightning.visible_text import visible, visible_text


class PlainTable(Table):
    """A rich table that takes strings for text; rich itself would follow `[red]` and `[link=...]` in them."""

    def __init__(self, *headings: str, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        super().__init__(title=title and _plain(title), caption=caption and _plain(caption), **options)
        for heading in headings:
            self.add_column(heading)

    @override
    def add_column(self, header: RenderableType = "", *others: Any, **options: Any) -> None:
        super().add_column(_plain(header), *others, **options)

    @override
    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


class Lines(str):
    """Text of a cell whose lines are to stay."""


def _plain(cell: Any) -> Any:
    if isinstance(cell, Lines):
        return Text(visible_text(cell))
    return Text(visible(cell)) if isinstance(cell, str) else cell
