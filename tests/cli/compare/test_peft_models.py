"""Methods of PEFT in models of users: quantised, tied, copied, rebuilt, in half precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning import PeraCallback, PeraConfig, quantize_model
from pera_lightning.cli.compare.comparison_methods import METHODS, method_of
from pera_lightning.cli.compare.peft_callback import PeftCallback
from pera_lightning.cli.compare.peft_options import peft_options
from pera_lightning.errors import InjectionError, PeraError
from tests.support.trainers import cpu_trainer


class Packed(pl.LightningModule):
    """Two quantised layers of somebody's own module, on rows that another such net answers."""

    def __init__(self, quantization: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
        quantize_model(self.net, quantization)
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self.net(batch[0]), batch[0].flip(1))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((value for value in self.parameters() if value.requires_grad), lr=1e-2)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(32, 64, generator=torch.Generator().manual_seed(3))), batch_size=16)


@pytest.mark.parametrize(
    ("name", "quantization"),
    [("peft_lora", "nf4"), ("dora", "nf4"), ("hira", "nf4"), ("pissa", "nf4"), ("peft_lora", "int8"), ("dora", "int8")],
)
def test_over_a_quantised_base_lora_alone_is_compared(tmp_path: Path, name: str, quantization: str) -> None:
    module = Packed(quantization)
    packed = [layer.weight.data.clone() for layer in (module.net[0], module.net[2])]
    method = peft_options(method_of(METHODS[name]).peft, {"rank": 2})
    callback = PeftCallback(PeraConfig(rank=2, target_modules=["0", "2"]), method, tmp_path / "adapter")
    trainer = cpu_trainer(tmp_path, callback, max_epochs=8, enable_checkpointing=False)
    if (name, quantization) not in (("peft_lora", "nf4"), ("dora", "nf4"), ("peft_lora", "int8")):
        with pytest.raises(InjectionError, match="not compared over this base"):
            trainer.fit(module)
        return
    trainer.fit(module)
    assert module.losses[-1] < 0.97 * module.losses[0]
    for layer, before in zip((module.net[0], module.net[2]), packed, strict=True):
        assert torch.equal(layer.base_layer.weight.data, before)


class Rows(pl.LightningModule):
    """Somebody's own module on rows that come in an order drawn by torch's own generator."""

    def __init__(self, net: torch.nn.Module, width: int = 8) -> None:
        super().__init__()
        self.net = net
        self.width = width
        self.seen: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0].sum().item())
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((value for value in self.parameters() if value.requires_grad), lr=1e-2)

    def train_dataloader(self) -> DataLoader[Any]:
        rows = torch.randn(32, self.width, generator=torch.Generator().manual_seed(3))
        return DataLoader(TensorDataset(rows), batch_size=4, shuffle=True)


def two_layers(width: int = 8) -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, width))


def fit_rows(module: pl.LightningModule, folder: Path, callback: pl.Callback, *others: pl.Callback) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = cpu_trainer(folder, callback, *others, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module)
    return trainer


def peft_callback(folder: Path, name: str = "peft_lora", **config: Any) -> PeftCallback:
    method = peft_options(method_of(METHODS[name]).peft, {"rank": 2})
    return PeftCallback(PeraConfig(rank=2, **{"target_modules": ["0"], **config}), method, folder / "adapter")


def test_rows_come_in_the_same_order_with_all_methods(tmp_path: Path) -> None:
    orders = {}
    ours = PeraCallback(rank=2, target_modules=["0"], adapter_dir=str(tmp_path / "ours"))
    names = ("peft_lora", "dora", "pissa", "loha")
    for name, callback in {"ours": ours, **{name: peft_callback(tmp_path, name) for name in names}}.items():
        module = Rows(two_layers())
        fit_rows(module, tmp_path, callback)
        orders[name] = module.seen
    assert all(order == orders["ours"] for order in orders.values())
    assert orders["ours"] != sorted(orders["ours"])


def test_a_model_that_is_built_anew_is_refused(tmp_path: Path) -> None:
    class Rebuilt(Rows):
        def configure_model(self) -> None:
            self.net = two_layers()

        def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None: ...

        test_dataloader = Rows.train_dataloader

    module = Rebuilt(two_layers())
    trainer = fit_rows(module, tmp_path, peft_callback(tmp_path))
    with pytest.raises(PeraError, match="The trained adapters are gone"):
        trainer.test(module, verbose=False)


@pytest.mark.parametrize("kind", ["encoder", "copy", "averaging"])
def test_what_peft_would_do_otherwise_than_pera_is_refused(tmp_path: Path, kind: str) -> None:
    module, config, others = Rows(two_layers()), {"target_modules": "all-linear"}, []
    if kind == "encoder":
        module = Rows(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    elif kind == "copy":
        module.teacher = copy.deepcopy(module.net).requires_grad_(False)
        config = {"target_modules": ["0"]}
    else:
        others = [pl.callbacks.StochasticWeightAveraging(1e-2)]
    with pytest.raises(PeraError, match=r"cannot be compared here|Weights are not averaged"):
        fit_rows(module, tmp_path, peft_callback(tmp_path, **config), *others)


def test_adapters_over_a_bfloat16_base_are_float32_as_ours(tmp_path: Path) -> None:
    module = Rows(two_layers())
    module.net.to(torch.bfloat16)
    module.train_dataloader = lambda: DataLoader(  # type: ignore[method-assign]
        TensorDataset(torch.randn(8, 8, dtype=torch.bfloat16)), batch_size=4
    )
    fit_rows(module, tmp_path, peft_callback(tmp_path, "dora"))
    trained = [value for value in module.parameters() if value.requires_grad]
    assert {value.dtype for value in trained} == {torch.float32}
    assert len(trained) == 3


def test_tied_weights_are_not_saved_whole(tmp_path: Path) -> None:
    module = Rows(two_layers())
    module.net.append(torch.nn.Linear(8, 8))
    module.net[3].weight = module.net[2].weight
    with pytest.raises(InjectionError, match="does not tie again"):
        fit_rows(module, tmp_path, peft_callback(tmp_path, modules_to_save=["3"]))
