"""What Lightning's strategies do to modules and gradients: everything that asks about sharding asks here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

Entry = TypeVar("Entry")


class StrategyKind(NamedTuple):
    """What others have to know of a strategy; as it stands: one device, and DDP in all its forms."""

    shards_base: bool = False
    """Whether a process may hold parts of the base's parameters only."""
    shards_adapter: bool = False
    """Whether optimizers step on parts of the adapter's parameters, so that their states are in parts too."""
    hides_gradients: bool = False
    """Whether gradients are accumulated where nobody else reaches them."""


KINDS: dict[type[Strategy], StrategyKind] = {
    DeepSpeedStrategy: StrategyKind(hides_gradients=True),
    FSDPStrategy: StrategyKind(shards_base=True),
    ModelParallelStrategy: StrategyKind(shards_base=True, shards_adapter=True),
}
"""Lightning's class, with its subclasses -> its kind. All others leave modules whole and gradients in reach."""


def kind_of(strategy: Strategy) -> StrategyKind:
    """The kind of a strategy."""
    return nearest_entry(strategy, KINDS, StrategyKind())


def nearest_entry(strategy: Strategy, table: Mapping[type[Strategy], Entry], default: Entry) -> Entry:
    """The entry of the strategy's class in a table, else of the nearest class that it is derived from."""
    return next((table[kind] for kind in type(strategy).__mro__ if kind in table), default)
