"""Where the answers of a batch are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pera_lightning.data.examples import IGNORE_INDEX
from pera_lightning.errors import DataError

PLACES = "answer_places"
"""Entry of a batch: indices (N,) into its flattened (B, T) of the tokens that predict a labelled one."""
COLUMNS = "answer_columns"
"""Entry of a batch: indices (C,) of the positions at which some row predicts a labelled token."""


def with_answer_places(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the entries `PLACES` and `COLUMNS`.

    How many there are has to be known on the CPU, which on a GPU means to wait for everything before. So this is done
    before a batch goes there; a batch that has the entries already is returned as it is.

    Args:
        batch: With `labels` (B, T), int64. The token at t - 1 predicts the label at t.

    Raises:
        DataError: No token is labelled.
    """
    if PLACES in batch:
        return dict(batch)
    labels = batch["labels"]
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    if not len(rows):
        raise DataError(
            "The batch holds no answer to learn from.",
            got=f"{labels.shape[0]} rows of {labels.shape[1]} tokens, all of them labelled {IGNORE_INDEX}",
            expected="at least one labelled token",
            fix="raise the maximum length (truncation took every answer away), or drop rows with empty answers",
        )
    found = {PLACES: rows * labels.shape[1] + columns, COLUMNS: columns.unique()}
    # As the rest of the batch is: a copy from other memory to a GPU would wait after all.
    return {**batch, **{name: value.pin_memory() if labels.is_pinned() else value for name, value in found.items()}}
