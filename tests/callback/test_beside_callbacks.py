"""Beside Lightning's own callbacks: they do their work, the adapter trains, and the base keeps its bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    RichModelSummary,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, adapter_state_dict
from pera_lightning.errors import TrainingError
from pera_lightning.injection import adapted_layers
from tests.support.models import Regressor
from tests.support.noisy import Noisy
from tests.support.trainers import cpu_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


class Tunable(Regressor):
    """With the attributes that the tuner sets."""

    def __init__(self, build_in: str = "__init__") -> None:
        super().__init__(build_in)
        self.lr = 1e-3
        self.batch_size = 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=self.lr)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._loader().dataset, batch_size=self.batch_size)


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return cpu_trainer(folder, *callbacks, **{"log_every_n_steps": 1, **options})


def check_trained(module: pl.LightningModule) -> None:
    """The adapter is there once and trained, over the base as it was."""
    layers = dict(adapted_layers(module))
    assert list(layers) == ["net.0", "net.2"]
    plain = Regressor()
    for name, layer in layers.items():
        assert layer.pera_B.any()
        assert torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight)
        assert torch.equal(layer.base_layer.bias, plain.get_submodule(name).bias)
    assert torch.equal(module.net[3].weight, plain.net[3].weight)


BESIDE = {
    "EarlyStopping": lambda: EarlyStopping("val_loss", min_delta=10.0, patience=1),
    "GradientAccumulationScheduler": lambda: GradientAccumulationScheduler({0: 2, 1: 1}),
    "ModelSummary": lambda: ModelSummary(max_depth=-1),
    "RichModelSummary": lambda: RichModelSummary(max_depth=3),
    "Timer": lambda: Timer("00:00:10:00"),
    "LearningRateFinder": lambda: LearningRateFinder(num_training_steps=20),
    "BatchSizeFinder": lambda: BatchSizeFinder(mode="power", steps_per_trial=1, max_trials=2),
}


class FreshAtTheBeginning(pl.Callback):
    """What a callback tries out before training must leave no trace in the adapter."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            assert not any(layer.pera_B.any() for _, layer in adapted_layers(module))


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
@pytest.mark.parametrize("beside", BESIDE)
def test_beside(tmp_path: Path, beside: str, build_in: str, before: bool) -> None:
    module = Tunable(build_in)
    callbacks = [BESIDE[beside](), PeraCallback(2)]
    ordered = callbacks if before else reversed(callbacks)
    trainer = make_trainer(tmp_path, *ordered, FreshAtTheBeginning(), enable_checkpointing=False)
    trainer.fit(module)
    check_trained(module)


def test_several_checkpoints(tmp_path: Path) -> None:
    module = Regressor()
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=2)
    steps = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=3, save_top_k=-1)
    weights = ModelCheckpoint(tmp_path / "weights", save_weights_only=True, save_last=True)
    make_trainer(tmp_path, best, PeraCallback(2), steps, weights).fit(module)
    check_trained(module)
    files = list(tmp_path.rglob("*.ckpt"))
    assert len(files) == 6
    for path in files:
        assert torch.load(path, weights_only=True)["state_dict"].keys() == adapter_state_dict(module).keys()


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_tuner(tmp_path: Path, build_in: str) -> None:
    module, plain = Tunable(build_in), Tunable(build_in)
    trainer = make_trainer(tmp_path, PeraCallback(2), FreshAtTheBeginning(), enable_checkpointing=False)
    tuner, plain_tuner = Tuner(trainer), Tuner(make_trainer(tmp_path, enable_checkpointing=False))
    for each, by in ((module, tuner), (plain, plain_tuner)):
        by.scale_batch_size(each, mode="power", steps_per_trial=1, max_trials=2)
    assert module.batch_size == plain.batch_size > 2
    module.batch_size = 4  # enough batches for what follows
    finder = tuner.lr_find(module, num_training=20)
    assert finder is not None
    assert module.lr == finder.suggestion()
    trainer.fit(module)
    check_trained(module)


def test_the_tuner_is_no_interruption(tmp_path: Path) -> None:
    """It goes back to a checkpoint of its own, of which no warning must tell."""
    module = Noisy(workers=1)
    finder = LearningRateFinder(num_training_steps=2, attr_name="rate")
    module.rate = 0.1
    trainer = make_trainer(tmp_path, PeraCallback(2), finder, enable_checkpointing=False, max_epochs=1)
    trainer.fit(module)


def test_throughput_monitor(tmp_path: Path) -> None:
    module = Regressor()
    module.flops_per_batch = 1000
    monitor = ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]))
    logger = CSVLogger(tmp_path)
    make_trainer(tmp_path, PeraCallback(2), monitor, LearningRateMonitor(), logger=logger).fit(module)
    check_trained(module)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning")
def test_thawing_the_base_is_refused(tmp_path: Path) -> None:
    class Staged(Regressor):
        @property
        def backbone(self) -> nn.Module:
            return self.net[0]

    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
    trainer = make_trainer(tmp_path, PeraCallback(2), finetuning, enable_checkpointing=False)
    with pytest.raises(TrainingError, match="frozen base is about to be trained"):
        trainer.fit(Staged())


def test_pruning_is_refused(tmp_path: Path) -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    trainer = make_trainer(tmp_path, PeraCallback(2), pruning, enable_checkpointing=False)
    with pytest.raises(TrainingError, match="would change the frozen base"):
        trainer.fit(Regressor())
