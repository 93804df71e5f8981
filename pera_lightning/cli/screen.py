"""What the command line prints: everything goes through here, so that no name in it can steer the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from pera_lightning.visible_text import visible_text

if TYPE_CHECKING:
    from pera_lightning.plain_table import PlainTable


def show(*lines: object) -> None:
    """Print lines, or reports of several lines.

    Args:
        lines: What is printed, as `str` shows it.
    """
    for line in lines:
        print(visible_text(str(line)))


def tell(line: object) -> None:
    """Print a line beside the results, to the error stream."""
    print(visible_text(str(line)), file=sys.stderr)


def ask() -> str:
    """Ask for a line; returns it without the white space around it, empty at the end of the input."""
    print("> ", end="", flush=True)
    return sys.stdin.readline().strip()


def show_table(table: PlainTable) -> None:
    """Print a table as wide as the screen, or as wide as it says itself."""
    from rich import get_console

    get_console().print(table, crop=False)


def accept_all_characters() -> None:
    """Have characters that the screen's encoding lacks written as escapes, where Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream)


def _reconfigure(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
