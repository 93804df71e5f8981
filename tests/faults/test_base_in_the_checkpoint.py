"""An `nn.Module` in the hyperparameters put the whole base into the .ckpt, which is to hold the adapter alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from pera_lightning import PeraCallback
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor, tiny_llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:Attribute .* is an instance of `nn.Module`:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
)


@dataclasses.dataclass
class Parts:
    net: nn.Module
    rate: float = 0.1


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Linear(8, 2))


class Given(Regressor):
    """Which gets its network, and other things, as arguments."""

    def __init__(self, net: nn.Module, thing: Any = None, rate: float = 0.02) -> None:
        super().__init__("nowhere")
        self.save_hyperparameters()
        self.net = net


class GivenThing(Regressor):
    def __init__(self, thing: Any, rate: float = 0.02) -> None:
        super().__init__()
        self.save_hyperparameters()


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda net: net,
    "copy": copy.deepcopy,
    "dict": lambda net: {"a": [{"net": net}], "lr": 0.1},
    "list": lambda net: [1, net],
    "tuple": lambda net: (1, (net,)),
    "dataclass": Parts,
    "partial": lambda net: functools.partial(torch.relu, net),
    "method": lambda net: net.forward,
    "state": lambda net: net.state_dict(),
    "copied state": lambda net: {key: value.clone() for key, value in net.state_dict().items()},
    "arrays": lambda net: [value.numpy().copy() for value in net.state_dict().values()],
    "one weight": lambda net: net[0].weight.detach().clone(),
    "flat": lambda net: torch.cat([value.detach().flatten() for value in net.parameters()]),
    "part": lambda net: net[2],
    "optimizer": lambda net: torch.optim.Adam(net.parameters()),
    "transformers": lambda net: tiny_llama(num_hidden_layers=1),
}


def numbers_in(value: object) -> int:
    """How many numbers of tensors and modules are in what was saved, counted where pickle finds them."""
    found = []

    class Counting(pickle.Pickler):
        def persistent_id(self, held: Any) -> Any:
            if isinstance(held, torch.Tensor):
                found.append(held.numel())
                return True
            return None

    Counting(io.BytesIO()).dump(value)
    return sum(found)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("name", HOLDERS)
def test_weights_in_hyperparameters_stay_out_of_the_checkpoint(tmp_path: Path, name: str, weights_only: bool) -> None:
    net = network()
    module = GivenThing(HOLDERS[name](net))
    module.net = net
    best = ModelCheckpoint(tmp_path / "checkpoints", save_weights_only=weights_only)
    with pytest.warns(UserWarning, match=r"'thing' \(.*load_from_checkpoint\(path, thing=\.\.\.\) needs it"):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(module)
    held = torch.load(best.best_model_path, weights_only=True)
    assert held["hyper_parameters"] == {"rate": 0.02}
    assert "thing" in module.hparams


@pytest.mark.filterwarnings("ignore:Found keys that are :UserWarning")
def test_the_module_is_given_again(tmp_path: Path) -> None:
    module = Given(network())
    best = ModelCheckpoint(tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match=r"'net' \(a Sequential\)"):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(module)
    with pytest.raises(TypeError, match="net"):
        Given.load_from_checkpoint(best.best_model_path, strict=False)
    again = Given.load_from_checkpoint(best.best_model_path, net=network(), strict=False)
    assert again.hparams.rate == 0.02


KEPT = {
    "number": 3,
    "class weights": torch.tensor([1.0, 2.0]),
    "loss": nn.CrossEntropyLoss(),
    "weighted loss": nn.CrossEntropyLoss(weight=torch.ones(2)),
    "small matrix": torch.eye(3),
    "path": Path("x"),
    "names": ["a", "b"],
}


@pytest.mark.parametrize("name", KEPT)
def test_other_hyperparameters_stay(tmp_path: Path, name: str) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints")
    make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(GivenThing(KEPT[name]))
    held = torch.load(best.best_model_path, weights_only=False)["hyper_parameters"]
    assert set(held) == {"thing", "rate"}
    assert type(held["thing"]) is type(KEPT[name])


class Data(pl.LightningDataModule):
    def __init__(self, teacher: nn.Module, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return Regressor().train_dataloader()

    val_dataloader = train_dataloader


def test_hyperparameters_of_a_data_module(tmp_path: Path) -> None:
    best, module = ModelCheckpoint(tmp_path / "checkpoints"), Regressor()
    with pytest.warns(UserWarning, match="data module's hyperparameters 'teacher'"):
        make_trainer(tmp_path, PeraCallback(2), best, max_epochs=1).fit(module, datamodule=Data(module.net))
    held = torch.load(best.best_model_path, weights_only=True)
    assert held["datamodule_hyper_parameters"] == {"batch_size": 8}


class Holding(pl.Callback):
    def __init__(self, make: Callable[[pl.LightningModule], Any]) -> None:
        self.make = make
        self.module: pl.LightningModule | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.module = pl_module

    def state_dict(self) -> dict[str, Any]:
        assert self.module is not None
        return {"held": self.make(self.module)}


@pytest.mark.parametrize(
    "make",
    [
        lambda module: dict(module.net.named_parameters()),
        lambda module: [value.detach().clone() for value in module.parameters()],
        lambda module: copy.deepcopy(module.net),
    ],
)
def test_weights_in_the_state_of_a_callback_are_told_of(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match="weights of the base.* in the state of the callback Holding"):
        make_trainer(tmp_path, PeraCallback(2), Holding(make), best, max_epochs=1).fit(Regressor())
    held = torch.load(best.best_model_path, weights_only=False)
    assert numbers_in(held["callbacks"]["Holding"]) > 0


def test_adapters_in_the_state_of_a_callback_are_its_own_affair(tmp_path: Path) -> None:
    average = Holding(lambda module: {key: value.clone() for key, value in module.state_dict().items()})
    make_trainer(tmp_path, PeraCallback(2), average, max_epochs=1).fit(Regressor())


def test_nothing_else_in_a_checkpoint_holds_the_base(tmp_path: Path) -> None:
    """An optimizer that was given all parameters, and the states of loops, callbacks and random generators."""

    class AllParameters(Regressor):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.02)

    best, module = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, monitor="val_loss"), AllParameters()
    callback = PeraCallback(2, skip_checks=["optimizer"])
    make_trainer(tmp_path, callback, best, max_epochs=1).fit(module)
    held = torch.load(best.best_model_path, weights_only=True)
    adapter = sum(value.numel() for value in held.pop("state_dict").values())
    assert adapter == sum(value.numel() for value in module.parameters() if value.requires_grad)
    states = held.pop("optimizer_states")
    assert numbers_in(states) == 2 * adapter + len(states[0]["state"])
    assert numbers_in(held) < 6000  # of torch's random state, in bytes


def test_a_module_without_adapters_keeps_its_hyperparameters(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints")
    trainer = make_trainer(tmp_path, best, max_epochs=1)
    trainer.fit(Given(network()))
    assert "net" in torch.load(best.best_model_path, weights_only=False)["hyper_parameters"]
