"""A strategy is a line in two tables: what answers for it in a run, and what everybody else asks about sharding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from pera_lightning.callback.conflicting_callbacks import refuse_conflicting_callbacks
from pera_lightning.callback.strategies.choice import STRATEGIES, strategy_of
from pera_lightning.callback.strategies.deepspeed import DeepSpeedRun
from pera_lightning.callback.strategies.fsdp1 import Fsdp1Run
from pera_lightning.callback.strategies.model_parallel import ModelParallelRun
from pera_lightning.callback.strategies.refuse_quantized import refuse_quantized
from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.errors import ConfigError, TrainingError
from pera_lightning.models.activation_offloading import check_offloading
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
from pera_lightning.models.parallel.strategy_kind import KINDS, StrategyKind, kind_of
from tests.support.quantized_fit import Net


class Sharding(SingleDeviceStrategy):
    """One of its own, on the CPU."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))


class ShardingRun(RunStrategy):
    """What answers for it."""


class Fsdp(FSDPStrategy):
    """Made of one that is known."""


class FsdpRun(Fsdp1Run):
    """What answers for it."""


def trainer_of(strategy: Strategy) -> Any:
    return SimpleNamespace(strategy=strategy, callbacks=[StochasticWeightAveraging(0.1)])


def unmade(kind: type[Strategy]) -> Strategy:
    """Some need libraries to be made."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (SingleDeviceStrategy, RunStrategy),
        (DDPStrategy, RunStrategy),
        (DeepSpeedStrategy, DeepSpeedRun),
        (FSDPStrategy, Fsdp1Run),
        (Fsdp, Fsdp1Run),
        (ModelParallelStrategy, ModelParallelRun),
        (FSDP2Strategy, ModelParallelRun),
    ],
)
def test_each_has_what_answers_for_it(theirs: type[Strategy], ours: type[RunStrategy]) -> None:
    assert type(strategy_of(trainer_of(unmade(theirs)))) is ours


def test_both_tables_know_the_same_strategies() -> None:
    assert set(STRATEGIES) == set(KINDS)


def test_a_line_of_a_derived_class_comes_before_that_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, Fsdp, FsdpRun)
    monkeypatch.setitem(KINDS, Fsdp, StrategyKind(shards_base=True, shards_adapter=True))
    assert type(strategy_of(trainer_of(unmade(Fsdp)))) is FsdpRun
    assert kind_of(unmade(Fsdp)).shards_adapter
    assert not kind_of(unmade(FSDPStrategy)).shards_adapter


@pytest.mark.parametrize("kind", [FSDPStrategy, Fsdp, ModelParallelStrategy, FSDP2Strategy, Sharding])
def test_what_needs_whole_modules_is_refused_where_they_are_sharded(
    kind: type[Strategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRATEGIES, Sharding, ShardingRun)
    monkeypatch.setitem(KINDS, Sharding, StrategyKind(shards_base=True))
    trainer = trainer_of(Sharding() if kind is Sharding else unmade(kind))
    with pytest.raises(TrainingError, match=rf"StochasticWeightAveraging under {kind.__name__}"):
        refuse_conflicting_callbacks(trainer)
    with pytest.raises(ConfigError, match=rf"activation_offloading=True under {kind.__name__}"):
        check_offloading(trainer)


def test_strategies_without_a_line_leave_modules_whole() -> None:
    assert kind_of(Sharding()) == kind_of(unmade(DDPStrategy)) == StrategyKind()
    refuse_conflicting_callbacks(trainer_of(Sharding()))


def test_a_refusal_of_a_quantised_base_names_the_strategy_and_no_other() -> None:
    module = Net()
    module.configure_model()
    with pytest.raises(ConfigError, match="strategy: Sharding over a base in nf4-dq") as caught:
        refuse_quantized(Sharding(), module)
    assert "DeepSpeed" not in str(caught.value)
