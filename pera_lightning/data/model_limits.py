"""What a model takes: ids up to the rows of its embedding, positions up to those of its table.

Beyond either, looking up fails in the middle of a run: with an IndexError, on a GPU with an assertion that ends the
process. So data and model are compared before the first batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pera_lightning.data.rescaled_positions import refuse_packs, rescales_at
from pera_lightning.errors import ConfigError
from pera_lightning.run_log.messages import rank_zero_warn

_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|positions?_embed(ding)?s?|pos_embed\w*)$")
"""Names of the layers that look positions up: GPT-2, OPT, BART, BERT and their kin."""
_TABLES = ("embed_positions", "pos_encoding")
"""Names of tables that are no layers: GPT-J, CTRL."""


@dataclass(frozen=True)
class ModelLimits:
    """What the language model inside a module takes; None is no limit, or none that is known.

    Attributes:
        name: Its class.
        ids: Number of token ids, from 0.
        positions: Tokens of a row for which it has a position.
        made_for: Tokens of a row that it was made for; positions that are computed go on beyond, but worse.
        rescales_at: See `rescales_at`.
    """

    name: str
    ids: int | None
    positions: int | None
    made_for: int | None
    rescales_at: int | None = None

    @classmethod
    def of(cls, module: nn.Module | None) -> ModelLimits | None:
        """Of a transformers model, or the only one inside of a module; None where there is none, or several."""
        models = [] if module is None else list(_outermost_models(module))
        if len(models) != 1:
            return None
        [model] = models
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        made_for = getattr(config, "max_position_embeddings", None)
        made_for = made_for if isinstance(made_for, int) else None
        lengths = list(_table_lengths(model))
        # Some tables have rows that are for nothing.
        positions = min([*lengths, *([] if made_for is None else [made_for])]) if lengths else None
        return cls(type(model).__name__, _ids_of(model), positions, made_for, rescales_at(model))

    def room_after(self, prompt: int) -> int | None:
        """Tokens that can be generated after a prompt of so many; None is no limit. The last one is not read again."""
        return None if self.positions is None else max(0, self.positions - prompt + 1)

    def check_rows(self, what: str, *, largest_id: int, longest: int, shorter: str, packed: bool = False) -> None:
        """Compare rows with the model.

        Args:
            what: What the rows are, for the message.
            largest_id: Of their token ids, that of the padding included.
            longest: Tokens of the longest row.
            shorter: What makes rows shorter.
            packed: Whether they will stand end to end.

        Raises:
            ConfigError: An id or a position is beyond the model's tables, or rows of a pack would change each other.
        """
        if packed and self.rescales_at is not None and longest > self.rescales_at:
            refuse_packs(self.name, longest, self.rescales_at)
        if self.ids is not None and largest_id >= self.ids:
            raise ConfigError(
                "The tokenizer makes tokens that the model does not have.",
                got=f"the token id {largest_id} in the {what}, and {self.ids} rows in the embedding of {self.name}",
                expected=f"ids below {self.ids}",
                fix="take the tokenizer of this model; for tokens that were added to it, enlarge the embedding: "
                "model.resize_token_embeddings(len(tokenizer)), and train their rows (trainable_token_indices)",
            )
        if self.positions is not None and longest > self.positions:
            raise ConfigError(
                "Rows are longer than the model has positions.",
                got=f"{longest} tokens in the {what}, and {self.positions} positions in {self.name}",
                expected=f"at most {self.positions} tokens",
                fix=shorter,
            )
        if self.positions is None and self.made_for is not None and longest > self.made_for:
            rank_zero_warn(
                f"PERA: rows of up to {longest} tokens in the {what}, while {self.name} was made for "
                f"{self.made_for} (max_position_embeddings). It goes on beyond, but has not learnt such positions: "
                f"{shorter}, or set the rope_scaling that the model's card names."
            )


def _outermost_models(module: nn.Module) -> Iterator[Any]:
    if hasattr(module, "config") and hasattr(module, "get_input_embeddings"):
        yield module
        return
    for child in module.children():
        yield from _outermost_models(child)


def _ids_of(model: Any) -> int | None:
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    while hasattr(table, "base_layer"):
        table = table.base_layer
    return _rows(table)


def _rows(table: Any) -> int | None:
    # A table that is sharded keeps its number.
    rows = getattr(table, "num_embeddings", None)
    if isinstance(rows, int):
        return rows
    weight = getattr(table, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _table_lengths(model: nn.Module) -> Iterator[int]:
    for name, module in model.named_modules():
        rows = _rows(module) if _POSITIONS.search(name) else None
        if rows is not None:
            # OPT and BART leave the first rows out, RoBERTa those up to that of the padding.
            padding = getattr(module, "padding_idx", None)
            yield rows - getattr(module, "offset", 0) - (0 if padding is None else padding + 1)
        tables = (getattr(module, name, None) for name in _TABLES)
        yield from (len(table) for table in tables if isinstance(table, Tensor) and table.ndim == 2)
