"""The training rows that validation gets where it has no rows of its own, and those that are drawn of very many."""

from __future__ import annotations

import torch

from pera_lightning.errors import ConfigError, DataError


def check_val_split(share: float) -> None:
    """Raises a `ConfigError` unless this is a share of the training rows that leaves some to train on."""
    if not 0 <= share < 1:
        raise ConfigError(
            "val_split must be a share of the train rows.",
            got=share,
            expected="a number from 0 up to, but not including, 1",
            fix="val_split: 0.05 holds out one row in twenty",
        )


def share_of(share: float, rows: int) -> int:
    """A share of rows as their number, at least 1."""
    return max(1, round(share * rows))


def hold_out(rows: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows held out and of the others, both in random order.

    Args:
        rows: How many there are.
        held_out: How many to hold out.
        seed: Decides which.

    Raises:
        DataError: No other row would be left.
    """
    if held_out >= rows:
        raise DataError(
            "There are too few train rows to hold some out for validation.",
            got=f"{rows} rows, {held_out} to hold out",
            expected="at least one row on either side",
            fix="give more rows, or hold out fewer",
        )
    order = _shuffled(rows, seed)
    return order[:held_out], order[held_out:]


def drawn(rows: int, limit: int | None, seed: int) -> list[int]:
    """Numbers of the rows that are used where there is a limit, in their order.

    They are not the first ones: many files are sorted by class or source.
    """
    return sorted(_shuffled(rows, seed)[:limit]) if limit is not None and limit < rows else list(range(rows))


def _shuffled(rows: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
