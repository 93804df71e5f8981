"""Positions that are computed from the longest row: dynamic NTK scaling and LongRoPE of transformers.

Once one row is longer than the model's first context, all rows that go through the model with it get other frequencies:
a row is then another one in company than it is alone, in packs and in padded batches alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pera_lightning.errors import ConfigError
from pera_lightning.run_log.messages import rank_zero_warn


def rescales_at(model: nn.Module) -> int | None:
    """Tokens of a row beyond which a model computes positions otherwise; None if it never does."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    text = config.get_text_config(decoder=True)
    return min(_limits(text, getattr(text, "rope_parameters", None)), default=None)


def _limits(config: Any, parameters: object) -> Iterator[int]:
    if not isinstance(parameters, Mapping):
        return
    kind = parameters.get("rope_type")
    if kind is None:
        # Of each kind of layer.
        for inner in parameters.values():
            yield from _limits(config, inner)
    elif kind == "longrope" or "dynamic" in str(kind):
        first = parameters.get("original_max_position_embeddings") if kind == "longrope" else None
        first = first or getattr(config, "max_position_embeddings", None)
        if isinstance(first, int):
            yield first


def refuse_packs(name: str, longest: int, limit: int) -> None:
    """Raise ConfigError: rows that change each other stand in packs.

    Args:
        name: Of the model.
        longest: Tokens of the longest row.
        limit: See `rescales_at`.
    """
    raise ConfigError(
        "A long row changes the positions of all rows in its pack.",
        got=f"a row of {longest} tokens in packs, and {name}, which computes positions otherwise for rows of more than "
        f"{limit} tokens (rope_type dynamic or longrope)",
        expected=f"rows of at most {limit} tokens, or each row alone",
        fix=f"set max_length: {limit}; or packing: false and padding_free: false with batch_size: 1",
    )


class RowsInCompany:
    """Looks at batches, while they are on the CPU, for rows that change the positions of others."""

    def __init__(self) -> None:
        self._told = False

    def check(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Look at a batch.

        Args:
            model: What it goes through.
            batch: `attention_mask` (B, T), or `position_ids` (1, T) of rows that stand end to end.

        Raises:
            ConfigError: Rows of a pack change each other. In padded batches a warning says so, once.
        """
        limit = rescales_at(model)
        if limit is None:
            return
        lengths = _lengths(batch)
        if len(lengths) < 2 or not min(lengths) <= limit < max(lengths):
            return
        if "position_ids" in batch:
            refuse_packs(type(model).__name__, max(lengths), limit)
        if not self._told:
            self._told = True
            rank_zero_warn(
                f"PERA: rows of {min(lengths)} and {max(lengths)} tokens are in one batch, and {type(model).__name__} "
                f"computes the positions of all of them otherwise once one has more than {limit} tokens (rope_type "
                f"dynamic or longrope): the shorter rows are not what they are alone. Set max_length: {limit}, "
                "batch_size: 1, or group_by_length: true, which leaves fewer such batches."
            )


def _lengths(batch: Mapping[str, Tensor]) -> list[int]:
    positions = batch.get("position_ids")
    if positions is None:
        mask = batch.get("attention_mask")
        return mask.sum(1).tolist() if mask is not None and mask.ndim == 2 else []
    starts = [*(positions.flatten() == 0).nonzero().flatten().tolist(), positions.numel()]
    return [end - start for start, end in pairwise(starts)]
