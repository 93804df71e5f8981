"""Ways to run a Trainer, one after the other and more than once: nothing is lost, nothing is doubled."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraCallback, adapter_state_dict, parameter_groups
from pera_lightning.injection import adapted_layers
from tests.callback.test_beside_callbacks import check_trained, make_trainer
from tests.support.models import Regressor

BUILD_IN = pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])


def trained_values(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in adapter_state_dict(module).items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@BUILD_IN
@pytest.mark.parametrize("options", [{"barebones": True}, {"fast_dev_run": 2}, {"overfit_batches": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:`Trainer.barebones=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_modes(tmp_path: Path, options: dict[str, Any], build_in: str) -> None:
    module = Regressor(build_in)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, callbacks=[PeraCallback(2)], **options
    )
    trainer.fit(module)
    check_trained(module)


class Manual(Regressor):
    """Two optimizers, stepped by hand in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        ours, others = [], []
        for name, value in self.named_parameters():
            if value.requires_grad:
                (ours if name.endswith("pera_B") else others).append(value)
        return [torch.optim.Adam(ours, lr=0.02), torch.optim.SGD(others, lr=0.1)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = self._loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    module = Manual()
    start = Regressor()
    make_trainer(tmp_path, PeraCallback(2)).fit(module)
    check_trained(module)
    for _, layer in adapted_layers(module):
        assert layer.pera_h.any()
    assert all(value.requires_grad == ("pera_" in name) for name, value in module.named_parameters())
    assert torch.equal(start.net[3].weight, module.net[3].weight)


def test_parameter_groups_in_any_module(tmp_path: Path) -> None:
    class Grouped(Regressor):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameter_groups(self.named_parameters(), learning_rate=0.01, b_lr_factor=4.0))

    module = Grouped()
    make_trainer(tmp_path, PeraCallback(2)).fit(module)
    check_trained(module)


@BUILD_IN
def test_two_fits_of_one_trainer(tmp_path: Path, build_in: str) -> None:
    module = Regressor(build_in)
    trainer = make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False)
    trainer.fit(module)
    first, layers = trained_values(module), [id(layer) for _, layer in adapted_layers(module)]
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module)
    assert [id(layer) for _, layer in adapted_layers(module)] == layers
    check_trained(module)
    assert not torch.equal(first["net.0.pera_B"], adapter_state_dict(module)["net.0.pera_B"])


@BUILD_IN
def test_a_second_trainer_goes_on_with_the_same_adapter(tmp_path: Path, build_in: str) -> None:
    module, whole = Regressor(build_in), Regressor(build_in)
    for _ in range(2):
        torch.manual_seed(0)
        make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False, max_epochs=1).fit(module)
    check_trained(module)
    torch.manual_seed(0)
    make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False, max_epochs=1).fit(whole)
    assert not torch.equal(adapter_state_dict(whole)["net.0.pera_B"], adapter_state_dict(module)["net.0.pera_B"])


@BUILD_IN
def test_validate_test_and_predict_change_nothing(tmp_path: Path, build_in: str) -> None:
    module = Regressor(build_in)
    trainer = make_trainer(tmp_path, PeraCallback(2, skip_checks=["untrained"]), enable_checkpointing=False)
    before = trainer.validate(module, verbose=False)
    trainer.fit(module)
    values = trained_values(module)
    trained = trainer.test(module, verbose=False)
    predicted = trainer.predict(module)
    assert trained[0]["test_loss"] != before[0]["val_loss"]
    assert_same(values, adapter_state_dict(module))
    # Without the callback it is the same module.
    plain = make_trainer(tmp_path, enable_checkpointing=False)
    assert plain.test(module, verbose=False) == trained
    again = plain.predict(module)
    assert all(torch.equal(left, right) for left, right in zip(predicted, again, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@BUILD_IN
def test_copies_before_and_after(tmp_path: Path, build_in: str, copied: Any) -> None:
    plain = copied(Regressor(build_in))
    module = copied(plain)
    callback = copied(PeraCallback(2))
    torch.manual_seed(0)
    make_trainer(tmp_path, callback, enable_checkpointing=False).fit(module)
    torch.manual_seed(0)
    make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False).fit(plain)
    assert_same(trained_values(plain), trained_values(module))
    other = copied(module)
    assert_same(trained_values(module), trained_values(other))
    make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False, max_epochs=1).fit(other)
    check_trained(other)
    assert_same(trained_values(plain), trained_values(module))


class Silent(Regressor):
    """Logs nothing: a wholly compiled module cannot (torch does not get through Lightning's `log`)."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._loss(batch)


class Compiled(Regressor):
    """Compiles its network when it is built, before the adapters come."""

    def _build(self) -> None:
        super()._build()
        if isinstance(self.net, nn.Sequential):
            self.net = torch.compile(self.net, backend="aot_eager")


def test_compiled_before_the_adapters(tmp_path: Path) -> None:
    module, plain = Compiled("configure_model"), Regressor()
    for one in (module, plain):
        torch.manual_seed(0)
        make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False).fit(one)
    check_trained(plain)
    assert adapter_state_dict(module).keys() == adapter_state_dict(plain).keys()
    for name, value in adapter_state_dict(plain).items():
        torch.testing.assert_close(adapter_state_dict(module)[name], value, rtol=1e-4, atol=1e-5)


def test_compiled_after_the_adapters(tmp_path: Path) -> None:
    module, plain = Silent(), Silent()
    for one in (module, plain):
        torch.manual_seed(0)
        make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False, max_epochs=1).fit(one)
    for one in (torch.compile(module, backend="aot_eager"), plain):
        torch.manual_seed(0)
        make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False, max_epochs=1).fit(one)
    check_trained(plain)
    for name, value in adapter_state_dict(plain).items():
        torch.testing.assert_close(adapter_state_dict(module)[name], value, rtol=1e-4, atol=1e-5)


def test_a_wholly_compiled_module(tmp_path: Path) -> None:
    module, plain = Silent(), Silent()
    for one in (torch.compile(module, backend="aot_eager"), plain):
        torch.manual_seed(0)
        make_trainer(tmp_path, PeraCallback(2), enable_checkpointing=False).fit(one)
    check_trained(module)
    for name, value in adapter_state_dict(plain).items():
        torch.testing.assert_close(adapter_state_dict(module)[name], value, rtol=1e-4, atol=1e-5)
