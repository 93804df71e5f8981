"""What a run says in its log: Lightning's functions for the first process, for lines that names cannot forge."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero

from pera_lightning.errors import PeraError
from pera_lightning.visible_text import visible


def rank_zero_info(message: str, **options: Any) -> None:
    """Log one line in the first process.

    Args:
        message: The line; what would steer a terminal or end the line is escaped.
        options: Of Lightning's function.
    """
    rank_zero.rank_zero_info(visible(message), **options)


def rank_zero_warn(message: str, error: PeraError | None = None, **options: Any) -> None:
    """Warn in the first process.

    Args:
        message: One line, as in `rank_zero_info`.
        error: Stands below it, on its own lines.
        options: Of Lightning's function.
    """
    line = visible(message)
    # This function is a frame more.
    options["stacklevel"] = options.get("stacklevel", 4) + 1
    rank_zero.rank_zero_warn(line if error is None else f"{line}\n{error}", **options)
