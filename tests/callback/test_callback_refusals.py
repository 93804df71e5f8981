"""What PeraCallback refuses, before or instead of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pera_lightning import PeraCallback
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.errors import CheckpointError, ConfigError, TargetError, TrainingError
from tests.support.callback_fits import make_trainer, trained_regressor
from tests.support.models import Regressor

# Lightning's remarks about tests that resume in another folder or with fewer callbacks than the first run.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[pl.Trainer, Regressor, Path]:
    return trained_regressor(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 3}, "the rank is 2 there and 3 here"),
        ({"rank": 2, "order": 1}, "pera_h"),
        ({"rank": 2, "terms": "square"}, "pera_h"),
        ({"rank": 2, "target_modules": ["0"]}, "net.2"),
        ({"rank": 2, "alpha": 8}, "alpha"),
        ({"rank": 2, "coefficient_scale": 30.0}, "coefficient_scale"),
    ],
)
@pytest.mark.parametrize("run", ["fit", "test"])
def test_refuses_a_checkpoint_of_other_options(
    trained: tuple[pl.Trainer, Regressor, Path], tmp_path: Path, options: dict[str, Any], words: str, run: str
) -> None:
    trainer = make_trainer(tmp_path / "other", PeraCallback(**options))
    with pytest.raises(CheckpointError, match=words):
        getattr(trainer, run)(Regressor(), ckpt_path=trained[2])


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["2"], "target_modules": ["0"]}])
@pytest.mark.parametrize("run", ["fit", "test"])
def test_refuses_a_checkpoint_of_the_plain_model(tmp_path: Path, options: dict[str, Any], run: str) -> None:
    plain = make_trainer(tmp_path)
    plain.fit(Regressor())
    path = plain.checkpoint_callback.best_model_path
    trainer = make_trainer(tmp_path / "adapted", PeraCallback(rank=2, **options))
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint of the plain model.*module\.load_state_dict"):
        getattr(trainer, run)(Regressor(), ckpt_path=path)
    # What the message says to do.
    module = Regressor()
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    make_trainer(tmp_path / "cured", PeraCallback(rank=2, **options)).fit(module)
    assert torch.equal(module.net[0].base_layer.weight, plain.lightning_module.net[0].weight)


def test_the_plain_model_is_nothing_to_consolidate(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path)
    plain.fit(Regressor())
    with pytest.raises(CheckpointError, match="checkpoint of the plain model"):
        consolidate(plain.checkpoint_callback.best_model_path, tmp_path / "adapter")


class Diverging(Regressor):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 5 else loss


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2))
    module = Diverging()
    with pytest.raises(TrainingError, match="at step 5"):
        trainer.fit(module)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    path = Path(trainer.checkpoint_callback.best_model_path)
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 4
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_a_wrong_target_stops_before_training_and_changes_nothing(tmp_path: Path) -> None:
    module = Regressor()
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, target_modules=["q_proj"]))
    with pytest.raises(TargetError, match="near names"):
        trainer.fit(module)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert "configure_model" not in module.__dict__


class EarlyOptimizer(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


def test_an_optimizer_without_the_adapters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"6 forgotten, e.g. 'net.0.pera_A'"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(EarlyOptimizer())


class Thawing(Regressor):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.epoch:
            self.net.requires_grad_(True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_base_that_thaws_is_refused_before_the_step(tmp_path: Path, epoch: int) -> None:
    module = Thawing(epoch)
    with pytest.raises(TrainingError, match=r"net.0.base_layer.weight"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(module)
    assert torch.equal(module.net[0].base_layer.weight, Regressor().net[0].weight)


def test_another_callback_on_an_adapted_module(tmp_path: Path) -> None:
    module = Regressor()
    make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False).fit(module)
    before = module.net[0].pera_B.clone()
    make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False).fit(module)
    assert not torch.equal(module.net[0].pera_B, before)
    with pytest.raises(ConfigError, match="other options"):
        make_trainer(tmp_path, PeraCallback(rank=4), enable_checkpointing=False).fit(module)


class FailingSetup(Regressor):
    def setup(self, stage: str) -> None:
        raise RuntimeError("on purpose")


def test_an_exception_before_injection_leaves_no_patch(tmp_path: Path) -> None:
    module = FailingSetup()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(module)
    assert "configure_model" not in module.__dict__


class Rebuilding(Regressor):
    def setup(self, stage: str) -> None:
        self.net = None
        self._build()


def test_a_model_that_is_built_anew_is_noticed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False)
    module = Rebuilding()
    trainer.fit(module)
    with pytest.raises(CheckpointError, match="built anew"):
        trainer.validate(module, verbose=False)
