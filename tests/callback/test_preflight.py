"""Checks before the first step: each finds what it is for, and can be skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraCallback, quantize_model
from pera_lightning.callback.preflight import CHECKS, looks_fresh
from pera_lightning.errors import ConfigError, TrainingError
from pera_lightning.injection import adapted_layers
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


def make_trainer(folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    return cpu_trainer(folder, *callbacks, max_epochs=1, limit_val_batches=0, enable_checkpointing=False)


class OldOptimizer(Regressor):
    """Makes its optimizer before the adapters come."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.02)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


class Thawing(pl.Callback):
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.net[3].requires_grad_(True)


class Freezing(pl.Callback):
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.net[0].pera_h.requires_grad_(False)


class Evaluating(Regressor):
    def _build(self) -> None:
        super()._build()
        self.net.eval()


class FreshHead(Regressor):
    def _build(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 256), nn.Linear(256, 2))
            for layer in (self.net[0], self.net[2]):
                layer.weight.data *= 1.5


class Slow(Regressor):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-5)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer)]


class Halved(Regressor):
    """In float16, with torch's Adam."""

    def on_fit_start(self) -> None:
        self.half()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step([part.half() for part in batch], batch_idx)


class Unused(Regressor):
    """Goes around its second adapted layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x)[:, :2]


FAULTS: dict[str, tuple[type[Regressor], type[pl.Callback] | None, str]] = {
    "optimizer": (OldOptimizer, None, "are in no optimizer"),
    "base": (Regressor, Thawing, "part of the frozen base would be trained"),
    "factors": (Regressor, Freezing, "part of the adapter cannot be trained"),
    "mode": (Evaluating, None, "2 adapted layers, for example 'net.0', are in eval mode"),
    "head": (FreshHead, None, r"output head 'net.3' .* PeraCallback\(modules_to_save=\['net.3'\]\)"),
    "learning_rate": (Slow, None, "learning rate 1.0e-05 is one for training whole models"),
    "epsilon": (Halved, None, "first step would make the weights NaN"),
    "gradients": (Unused, None, "reached 1 of 2 adapted layers; not, for example, 'net.2'"),
}
ERRORS = ("optimizer", "base", "factors", "epsilon")


def fit_with_fault(folder: Path, check: str, skip: tuple[str, ...] = ()) -> pl.LightningModule:
    kind, fault, _ = FAULTS[check]
    module = kind()
    # The fault comes first, so that it is there when the checks run.
    callbacks = [*([fault()] if fault else []), PeraCallback(2, dropout=0.1, skip_checks=skip)]
    make_trainer(folder, *callbacks).fit(module)
    return module


def test_every_check_has_a_fault() -> None:
    assert FAULTS.keys() == {*CHECKS, "gradients"}


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
@pytest.mark.parametrize("check", FAULTS)
def test_finds(tmp_path: Path, check: str) -> None:
    words = FAULTS[check][2]
    if check in ERRORS:
        with pytest.raises(TrainingError, match=words):
            fit_with_fault(tmp_path, check)
    else:
        with pytest.warns(UserWarning, match=words) as caught:
            fit_with_fault(tmp_path, check)
        assert sum("PERA" in str(warning.message) for warning in caught) == 1
        assert any(f"Check {check!r}" in str(warning.message) for warning in caught)


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
@pytest.mark.parametrize("check", [check for check in FAULTS if check not in ("base", "epsilon")])
def test_skips(tmp_path: Path, check: str) -> None:
    # Warnings are errors here.
    module = fit_with_fault(tmp_path, check, skip=(check,))
    assert list(adapted_layers(module))


def test_a_skipped_epsilon_does_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the adapter in memory holds 52 values of 6 tensors"):
        fit_with_fault(tmp_path, "epsilon", skip=("epsilon",))


@pytest.mark.parametrize("skip", [["heads"], "heads", ["head", "heads"]])
def test_refuses_names_that_are_none(skip: Any) -> None:
    with pytest.raises(ConfigError, match=r"skip_checks with 'heads'(.|\n)*base, optimizer, factors, mode, head"):
        PeraCallback(skip_checks=skip)


def test_a_quantised_factor_is_found(tmp_path: Path) -> None:
    class Rounding(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            layer = pl_module.net[0]
            layer.pera_A = nn.Parameter(layer.pera_A.to(torch.int8), requires_grad=False)

    with pytest.raises(TrainingError, match=r"e\.g\. 'net\.0\.pera_A'"):
        make_trainer(tmp_path, Rounding(), PeraCallback(2)).fit(Regressor())


@pytest.mark.parametrize("options", [{"modules_to_save": ["3"]}, {"target_modules": ["0", "3"]}], ids=str)
def test_a_head_that_is_trained_needs_no_hint(tmp_path: Path, options: dict[str, Any]) -> None:
    make_trainer(tmp_path, PeraCallback(2, **options)).fit(FreshHead())


def test_a_model_without_any_training_needs_no_hint(tmp_path: Path) -> None:
    class Fresh(FreshHead):
        def _build(self) -> None:
            self.net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 256), nn.Linear(256, 2))

    make_trainer(tmp_path, PeraCallback(2)).fit(Fresh())


def test_new_heads_look_fresh() -> None:
    torch.manual_seed(0)
    for layer in (nn.Linear(128, 3), nn.Linear(32, 10, bias=False), nn.Linear(768, 2)):
        assert looks_fresh(layer)
    drawn = nn.Linear(256, 4)
    nn.init.normal_(drawn.weight, std=0.02)
    nn.init.zeros_(drawn.bias)
    assert looks_fresh(drawn)
    model = nn.Sequential(drawn, nn.Linear(4, 4))
    quantize_model(model, "nf4")
    assert looks_fresh(model[0])


class Detached(Regressor):
    """Whose loss carries no gradient, as with reversible layers over a frozen embedding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_a_loss_that_depends_on_nothing_trained_is_refused(tmp_path: Path) -> None:
    module = Detached()
    with pytest.raises(TrainingError, match="depends on nothing that is trained"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(module)
    assert module.global_step == 0
    with pytest.raises(RuntimeError, match="does not require grad"):
        make_trainer(tmp_path, PeraCallback(rank=2, skip_checks=["gradients"])).fit(Detached())


def test_trained_heads_do_not_look_fresh() -> None:
    torch.manual_seed(0)
    head = nn.Linear(128, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(50):
        x = torch.randn(16, 128)
        nn.functional.mse_loss(head(x), x[:, :3]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not looks_fresh(head)
    assert not looks_fresh(nn.Linear(128, 3, device="meta"))
