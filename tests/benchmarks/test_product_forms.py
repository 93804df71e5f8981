"""Forms of the products that docs/RESEARCH.md tries: what they compute, what they train, and when."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.quality.product_forms import (
    CentredProducts,
    FlatLayers,
    GrowingScale,
    NormalRows,
    SeparateFactors,
    flatness,
)
from pera_lightning import PeraCallback, PeraConfig, inject_adapter
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear
from tests.support.trainers import cpu_trainer

INPUTS, OUTPUTS, RANK = 12, 7, 4


def outer(left: Tensor, right: Tensor) -> Tensor:
    return left[:, None] * right[None, :]


def slow_centred(layer: PeraLinear) -> Tensor:
    A, B, h = layer.pera_A, layer.pera_B, iter(layer.pera_h * layer.config.coefficient_scale)
    change = sum(outer(B[:, i], A[i]) for i in range(RANK))
    for i in range(RANK):
        for j in range(i, RANK):
            left, right = B[:, i] * B[:, j], A[i] * A[j]
            if i == j:
                left, right = left - left.mean(), right - right.mean()
            change = change + next(h) * outer(left, right)
    return change


def slow_normal_rows(layer: PeraLinear) -> Tensor:
    A, B, h = layer.pera_A, layer.pera_B, iter(layer.pera_h)
    change = sum(outer(B[:, i], A[i]) for i in range(RANK))
    gain = layer.pera_h[-1].exp() / math.sqrt(3 * INPUTS)
    rows = [A[i] / A[i].square().mean().sqrt() for i in range(RANK)]
    columns = [B[:, i] / (B[:, i].square().mean() + 1e-10).sqrt() for i in range(RANK)]
    for i in range(RANK):
        for j in range(i, RANK):
            change = change + gain * next(h) * outer(columns[i] * columns[j], rows[i] * rows[j])
    return change


def slow_separate(layer: PeraLinear) -> Tensor:
    A, B, h = layer.pera_A, layer.pera_B, iter(layer.pera_h)
    change = outer(B[:, 0], A[0]) + outer(B[:, 1], A[1])
    size = 1 / math.sqrt(3 * INPUTS)
    for i in (2, 3):
        for j in range(i, 4):
            change = change + next(h) * outer(B[:, i] * B[:, j] / size**2, A[i] * A[j] / size)
    return change


FORMS = {
    CentredProducts: slow_centred,
    NormalRows: slow_normal_rows,
    SeparateFactors: slow_separate,
}


def formed(form: type[Any]) -> PeraLinear:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(INPUTS, OUTPUTS)).double()
    inject_adapter(model, PeraConfig(rank=RANK, coefficient_scale=3.0))
    form().on_fit_start(None, model)
    [(_, layer)] = adapted_layers(model)
    return layer


@pytest.mark.parametrize("form", FORMS)
def test_the_start_is_the_base(form: type[Any]) -> None:
    layer = formed(form)
    x = torch.randn(5, INPUTS).double()
    # Separate factors have a linear part that is zero and products whose coefficients are.
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_what_the_slow_formula_says(form: type[Any]) -> None:
    layer = formed(form)
    for parameter in layer.adapter().values():
        torch.nn.init.normal_(parameter)
    expected = FORMS[form](layer)
    torch.testing.assert_close(layer.delta_weight(), expected, rtol=1e-9, atol=1e-9)
    x = torch.randn(5, INPUTS).double()
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ expected.T, rtol=1e-9, atol=1e-9)
    layer(x).square().sum().backward()
    for parameter in layer.adapter().values():
        assert (parameter.grad != 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_products_learn_from_the_start(form: type[Any]) -> None:
    layer = formed(form)
    start = {name: value.detach().clone() for name, value in layer.adapter().items()}
    optimizer = torch.optim.AdamW(layer.adapter().values(), lr=1e-2, weight_decay=0)
    x, y = torch.randn(32, INPUTS).double(), torch.randn(32, OUTPUTS).double()
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    for name, value in layer.adapter().items():
        assert (value != start[name]).all(), name


class Regression(pl.LightningModule):
    """Two adapted layers, of which half is one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.layers(batch) - 1).square().mean()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", (self.layers(batch) - 1).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-2)


class Watch(pl.Callback):
    """The coefficients and scales after every step."""

    def __init__(self) -> None:
        self.moved: list[list[bool]] = []
        self.sizes: list[float] = []
        self.flatness: list[list[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        layers = [layer for _, layer in adapted_layers(pl_module)]
        self.moved.append([bool(layer.pera_h.any()) for layer in layers])
        self.sizes.append(layers[0].config.coefficient_scale)
        self.flatness.append([flatness(layer) for layer in layers])


def fit(callback: pl.Callback, tmp_path: Any) -> tuple[pl.Trainer, Regression, Watch]:
    torch.manual_seed(0)
    watch, module = Watch(), Regression()
    adapter = PeraCallback(rank=2, adapter_dir=str(tmp_path / "adapter"))
    trainer = cpu_trainer(tmp_path, adapter, callback, watch, max_steps=8, max_epochs=-1, enable_checkpointing=False)
    trainer.fit(module, DataLoader(torch.randn(64, 8), batch_size=8))
    return trainer, module, watch


def test_growing_products_begin_late_and_grow(tmp_path: Any) -> None:
    _, _, watch = fit(GrowingScale(0.5), tmp_path)
    assert [any(moved) for moved in watch.moved] == [False] * 4 + [True] * 4
    assert watch.sizes[5] < watch.sizes[6] < watch.sizes[7]


def test_flat_layers_alone_get_products(tmp_path: Any) -> None:
    _, _, watch = fit(FlatLayers(0.5), tmp_path)
    assert [sum(moved) for moved in watch.moved] == [0] * 4 + [1] * 4
    chosen = [place for place, moved in enumerate(watch.moved[-1]) if moved]
    assert chosen == [max((0, 1), key=lambda place: watch.flatness[3][place])]


@pytest.mark.parametrize(("sizes", "expected"), [((1.0, 1.0), 1.0), ((1.0, 0.0), 0.5)])
def test_flatness(sizes: tuple[float, float], expected: float) -> None:
    layer = SimpleNamespace(rank=2, pera_A=torch.eye(2, 6), pera_B=torch.eye(5, 2) * torch.tensor(sizes))
    assert flatness(layer) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_energy_is_that_of_the_form(form: type[Any], tmp_path: Any) -> None:
    trainer, module, _ = fit(form(), tmp_path)
    trainer.test(module, DataLoader(torch.randn(8, 8)), verbose=False)
    ratios = [
        polynomial.norm() / linear.norm() for linear, polynomial in (x.parts() for _, x in adapted_layers(module))
    ]
    assert trainer.callback_metrics["test_energy"].item() == pytest.approx(torch.stack(ratios).mean().item())
