"""Which object of ours stands for which strategy of Lightning's."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from pera_lightning.callback.strategies.deepspeed import DeepSpeedRun
from pera_lightning.callback.strategies.fsdp1 import Fsdp1Run
from pera_lightning.callback.strategies.model_parallel import ModelParallelRun
from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.models.parallel.strategy_kind import nearest_entry

STRATEGIES: dict[type[Strategy], type[RunStrategy]] = {
    DeepSpeedStrategy: DeepSpeedRun,
    FSDPStrategy: Fsdp1Run,
    ModelParallelStrategy: ModelParallelRun,
}
"""Lightning's class, with its subclasses -> ours. All others leave modules whole."""


def strategy_of(trainer: pl.Trainer) -> RunStrategy:
    """What stands for the Trainer's strategy."""
    return nearest_entry(trainer.strategy, STRATEGIES, RunStrategy)(trainer)
