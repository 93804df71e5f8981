"""An interrupted run equals the uninterrupted one bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from pera_lightning import PeraCallback, adapter_state_dict
from tests.support.models import Regressor

pytestmark = [
    # Of Lightning about checkpoints kept elsewhere, and of torchdata about torch.
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


class Noisy(Regressor):
    """With dropout, a shuffled loader of the given kind and a schedule; writes down every loss."""

    def __init__(self, loader: Any = DataLoader) -> None:
        super().__init__()
        self.loader = loader
        self.dropout = nn.Dropout(0.2)
        self.losses: dict[tuple[int, int], Tensor] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(self.dropout(x)), y)
        self.losses[self.current_epoch, batch_idx] = loss.detach()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        x, y = torch.randn(48, 6, generator=generator), torch.randn(48, 2, generator=generator)
        return self.loader(TensorDataset(x, y), batch_size=8, shuffle=True)


def run(folder: Path, module: Noisy, seed: int, ckpt_path: str | None = None, **options: Any) -> pl.Trainer:
    torch.manual_seed(seed)
    checkpoints = ModelCheckpoint(folder / "kept", every_n_train_steps=options.pop("every", 6), save_top_k=-1)
    settings = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=[PeraCallback(2, dropout=0.1, coefficient_scale="auto"), checkpoints],
        limit_val_batches=0,
        **(settings | options),
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def check_same(folder: Path, loader: Any, start: tuple[int, int], every: int, **options: Any) -> None:
    """Go on from the first checkpoint with another seed; everything later is what the whole run had."""
    whole, rest = Noisy(loader), Noisy(loader)
    trainer = run(folder / "whole", whole, 1, every=every, **options)
    first = next((folder / "whole" / "kept").glob(f"*step={every}.ckpt"))
    resumed = run(folder / "rest", rest, 99, str(first), every=every, **options)
    expected = {step: loss for step, loss in whole.losses.items() if step >= start}
    assert rest.losses.keys() == expected.keys()
    assert len(expected) > 5
    assert all(torch.equal(rest.losses[step], loss) for step, loss in expected.items())
    for key, value in adapter_state_dict(whole).items():
        assert torch.equal(adapter_state_dict(rest)[key], value), key
    states = [run.optimizers[0].state_dict() for run in (trainer, resumed)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, moments in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][index][name]) for name, value in moments.items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_at_the_end_of_an_epoch(tmp_path: Path, precision: Any) -> None:
    check_same(tmp_path, DataLoader, (1, 0), every=6, precision=precision)


def test_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    check_same(tmp_path, StatefulDataLoader, (0, 4), every=2, accumulate_grad_batches=2)


def test_testing_draws_its_own_random_numbers(tmp_path: Path) -> None:
    run(tmp_path, Noisy(), 1)
    first = next((tmp_path / "kept").glob("*step=6.ckpt"))
    stored = torch.load(first, weights_only=True)["callbacks"]["PeraCallback"]["random"][0]["torch"]
    callback = PeraCallback(2, dropout=0.1, coefficient_scale="auto")
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[callback], logger=False, enable_progress_bar=False)
    trainer.test(Noisy(), ckpt_path=str(first), verbose=False)
    assert not torch.equal(torch.get_rng_state(), stored)
