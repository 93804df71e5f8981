"""Gradients, weights or moments that are not finite under a finite loss replaced a good adapter without a word."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from pera_lightning import load_adapter
from pera_lightning.errors import TrainingError
from tests.support.models import Regressor
from tests.support.spoiled import Spoiled, fit, refused
from tests.support.synchronisation import WithoutWaiting, treat_as_asynchronous

LAST = 7
"""Of the eight batches of a run."""


def same(module: pl.LightningModule, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in module.named_parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 3, LAST])
def test_gradients_stop_a_run_before_the_weights_take_harm(tmp_path: Path, at: int, bad: float) -> None:
    module = Spoiled([at], bad)
    message = refused(tmp_path, module, enable_checkpointing=False)
    assert "Gradients are not finite; training stops" in message
    assert "before the weights take harm: adapter and optimizer in memory are finite" in message
    assert "1 values of 'net.0.pera_B' under loss 0." in message.replace("loss 1.", "loss 0.")
    assert f"at step {at}, epoch {at // 4}; before" in message
    assert "no good checkpoint of this run is there (0 others): start again" in message
    assert same(module, module.seen[at])


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"accumulate_grad_batches": 2}, 6),
        ({"accumulate_grad_batches": 4}, 5),
        ({"gradient_clip_val": 0.5}, LAST),
        ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, LAST),
        ({"precision": "bf16-mixed"}, LAST),
        ({"precision": "64-true"}, LAST),
        ({"precision": "bf16-true"}, LAST),
    ],
    ids=str,
)
@pytest.mark.parametrize("late", [False, True])
def test_whatever_comes_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], at: int, late: bool
) -> None:
    if late:
        treat_as_asynchronous(monkeypatch)
    message = refused(tmp_path, Spoiled([at], optimizer=torch.optim.AdamW, fused=True), **options)
    assert "Gradients are not finite; training stops" in message
    assert "before the weights take harm: adapter and optimizer in memory are finite" in message
    assert "'net.0.pera_B'" in message or "net.0.pera_A" in message
    step = at // options.get("accumulate_grad_batches", 1)
    assert f"at step {step}, epoch 1" in message


@pytest.mark.parametrize(
    ("kind", "options", "harm"),
    [
        (torch.optim.AdamW, {"fused": True}, False),
        (torch.optim.SGD, {"fused": True, "momentum": 0.9}, False),
        (torch.optim.SGD, {}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.RMSprop, {}, True),
    ],
)
@pytest.mark.parametrize("at", [3, LAST])
def test_on_a_gpu_nothing_waits_and_the_message_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, options: dict[str, Any], harm: bool, at: int
) -> None:
    treat_as_asynchronous(monkeypatch)
    module = Spoiled([at], optimizer=kind, **options)
    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_last=True)
    message = refused(tmp_path, module, kept)
    assert "gradients of 1 of 6 tensors, e.g. of 'net.0.pera_B', under loss" in message
    assert f"at step {at}, epoch {at // 4}" in message
    weights = dict(module.named_parameters())
    if harm:
        assert "before the weights take harm" not in message
        assert "the adapter in memory holds 24 values of 'net.0.pera_B'" in message or "holds 1 values" in message
        assert not weights["net.0.pera_B"].isfinite().all()
    else:
        assert "before the weights take harm" in message
        # The step was left out on the device, so that they are those after the step before.
        assert same(module, module.seen[at])
        assert not hasattr(module.trainer.optimizers[0], "found_inf")
    good = re.search(r"last good checkpoint, of step (\d+): fit\(ckpt_path='(.*)'\)", message)
    assert good is not None
    held = torch.load(good[2], weights_only=True)
    assert held["global_step"] == int(good[1]) == {3: 2, LAST: 6}[at]
    assert all(value.isfinite().all() for value in held["state_dict"].values())


@pytest.mark.parametrize(
    ("kind", "options"), [(torch.optim.AdamW, {"fused": True}), (torch.optim.SGD, {"momentum": 0.9})]
)
def test_no_step_waits_for_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, options: dict[str, Any]
) -> None:
    watch = WithoutWaiting()
    treat_as_asynchronous(monkeypatch, watch.mode)
    module = Spoiled([], optimizer=kind, **options)
    fit(tmp_path, module, watch, gradient_clip_val=1.0, accumulate_grad_batches=2, enable_checkpointing=False)
    assert watch.batches == 8


class ByHand(Spoiled):
    """Steps its optimizer itself."""

    def __init__(self, at: list[int]) -> None:
        super().__init__(at)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Two(ByHand):
    """Steps two optimizers in turns, as a generator and its discriminator."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.spoiled(self._loss(batch)))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(layer.adapter().values(), lr=0.1) for layer in (self.net[0], self.net[2])]


class Own(torch.optim.Optimizer):
    """Somebody's own."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for value in group["params"]:
                value.data -= group["lr"] * value.grad
        return loss


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda: ByHand([LAST]), LAST),
        (lambda: Two([2 * LAST]), 2 * LAST),
        (lambda: Spoiled([LAST], optimizer=Own), LAST),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_however_it_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Spoiled], at: int, late: bool
) -> None:
    if late:
        treat_as_asynchronous(monkeypatch)
    message = refused(tmp_path, make())
    assert "Gradients are not finite" in message
    assert f"at step {at}, epoch 1" in message
    assert ("before the weights take harm" in message) is not late


class Mending(Spoiled):
    """Puts its gradients right before they are used."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for value in self.parameters():
            if value.grad is not None:
                value.grad.nan_to_num_(0, 0, 0)


class MendingClip(Spoiled):
    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        Mending.on_before_optimizer_step(self, optimizer)


class Spoiling(Regressor):
    """Its own hook, after those of the callbacks, spoils what was good."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step == LAST:
            self.net[0].pera_A.grad /= 0


def test_what_counts_is_what_the_optimizer_gets(tmp_path: Path) -> None:
    for module in (Mending([2, LAST]), MendingClip([2, LAST])):
        assert fit(tmp_path / type(module).__name__, module).global_step == 8
    assert "values of 'net.0.pera_A'" in refused(tmp_path / "spoiling", Spoiling())


def scaler(**options: Any) -> dict[str, Any]:
    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **options))}


def test_a_grad_scaler_may_leave_steps_out(tmp_path: Path) -> None:
    module = Spoiled([0, 1, 4, LAST], math.inf)
    trainer = fit(tmp_path, module, **scaler(init_scale=2.0**10))
    assert trainer.global_step == 8
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**6
    assert same(module, module.seen[LAST])
    assert not same(module, module.seen[6])
    load_adapter(Regressor(), tmp_path / "adapter")


def test_a_grad_scaler_that_leaves_out_every_step_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the last 5 steps were left out.*have trained nothing"):
        fit(tmp_path, Spoiled(range(3, 8), math.inf), **scaler())
    message = refused(tmp_path / "endless", Spoiled(range(1000), math.inf), max_epochs=20, **scaler())
    assert "Gradients at any scale are not finite; training stops" in message
    assert "40 steps left out in a row until step 39, at scale 1.19e-07" in message


@pytest.mark.parametrize("late", [False, True])
def test_a_grad_scaler_does_not_mend_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    class Diverging(Regressor):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.global_step == 5 else loss

    if late:
        treat_as_asynchronous(monkeypatch)
    assert "loss nan at step 5" in refused(tmp_path, Diverging(), **scaler())


class Halves(Spoiled):
    """Trained in float16."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step([part.half() for part in batch], batch_idx)


def test_adam_in_float16_is_refused_before_the_first_step(tmp_path: Path) -> None:
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam):
        module = Halves([], optimizer=kind)
        with pytest.raises(TrainingError, match=r"eps=1e-\d+ on float16 weights(.|\n)*bf16-true, 32-true or 16-mixed"):
            fit(tmp_path, module, precision="16-true")
        assert not module.seen
    for kind, options in ((torch.optim.SGD, {}), (torch.optim.Adam, {"eps": 1e-4})):
        fit(tmp_path / kind.__name__, Halves([], optimizer=kind, **options), precision="16-true")


@pytest.mark.parametrize("checkpoints", [True, False])
def test_moments_beyond_float16_are_told_with_the_cure(tmp_path: Path, checkpoints: bool) -> None:
    # The square of 60,000, times 0.05, is beyond float16; the weights stay finite and are trained no more.
    module = Halves([2], 60_000.0, eps=1e-4, betas=(0.9, 0.95))
    words = r"exp_avg_sq of net\.0\.pera_B(.|\n)*bf16-true, 32-true or 16-mixed"
    if checkpoints:
        with pytest.raises(TrainingError, match=f"A checkpoint would hold(.|\n)*1 values of '{words}"):
            fit(tmp_path, module, precision="16-true")
        assert not list(tmp_path.rglob("*.ckpt"))
    else:
        with pytest.warns(UserWarning, match=f"1 values of '{words}"):
            fit(tmp_path, module, precision="16-true", enable_checkpointing=False)
        load_adapter(Regressor(), tmp_path / "adapter")
    assert all(value.isfinite().all() for value in module.parameters())


class Reduced(Regressor):
    """Its loss is of another kind."""

    def __init__(self, size: float, kind: str) -> None:
        super().__init__()
        self.size, self.kind = size, kind

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        return loss.double() * 0 + self.size if self.kind == "large" else loss


def test_losses_that_are_finite_are_taken_for_finite(tmp_path: Path) -> None:
    assert fit(tmp_path, Reduced(1e300, "large")).global_step == 8


class Several(ByHand):
    """Its losses are many numbers, or none."""

    def __init__(self, losses: Tensor) -> None:
        super().__init__([])
        self.losses = losses

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = self.net(batch[0]).square().mean() * 0 + self.losses
        self.manual_backward(loss, gradient=torch.ones_like(loss))
        self.optimizers().step()


@pytest.mark.parametrize("losses", [torch.full((3,), 1.5e308, dtype=torch.float64), torch.empty(0)])
def test_many_large_losses_and_none_are_finite(tmp_path: Path, losses: Tensor) -> None:
    assert fit(tmp_path, Several(losses)).global_step == 8


def test_one_of_many_losses(tmp_path: Path) -> None:
    message = refused(tmp_path, Several(torch.tensor([1.0, math.inf, 2.0])))
    assert "The loss is not finite; training stops" in message
    assert "before the weights take harm" in message
