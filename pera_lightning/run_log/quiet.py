"""Warnings of the libraries below that say nothing to a user of this one."""

from __future__ import annotations

import warnings


def ignore_warning(message: str) -> None:
    """Keep quiet a warning that a library gives later, outside of any block here that could catch it.

    Args:
        message: Regular expression for the beginning of its text.
    """
    warnings.filterwarnings("ignore", message=message)
