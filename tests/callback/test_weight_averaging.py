"""Averages of weights are averages of the adapter; the base keeps its bits and stays out of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn

from pera_lightning import PeraCallback, adapter_state_dict, load_adapter, quantize_model
from pera_lightning.errors import TrainingError
from pera_lightning.injection import adapted_layers
from tests.support.averaging import exponential_average, weight_average
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that over:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]

AVERAGES = {
    "every step": weight_average,
    "exponential": lambda: exponential_average(decay=0.5),
    "with buffers": lambda: exponential_average(decay=0.5, use_buffers=True),
    "stochastic": lambda: StochasticWeightAveraging(0.02, swa_epoch_start=1),
}


class Watch(pl.Callback):
    """Writes the adapter down after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append({name: value.clone() for name, value in adapter_state_dict(module).items()})


class WithMask(Regressor):
    """A buffer that no average with itself survives, and frozen weights in half precision."""

    def _build(self) -> None:
        super()._build()
        self.net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.net.register_parameter("spare", nn.Parameter(torch.linspace(-1, 1, 64).half()))


def fit(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = cpu_trainer(folder, *callbacks, **{"max_epochs": 3, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def base_of(module: pl.LightningModule) -> dict[str, Tensor]:
    names = ("pera_A", "pera_B", "pera_h")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.clone() for name, value in tensors if not name.endswith(names)}


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
@pytest.mark.parametrize("average", AVERAGES)
def test_the_base_keeps_its_bits(tmp_path: Path, average: str, build_in: str, before: bool) -> None:
    module, plain = WithMask(build_in), WithMask()
    callbacks = [AVERAGES[average](), PeraCallback(2)]
    fit(tmp_path, module, *(callbacks if before else reversed(callbacks)), ModelCheckpoint(tmp_path, save_last=True))
    assert [name for name, _ in adapted_layers(module)] == ["net.0", "net.2"]
    kept = base_of(module)
    expected = {name.replace("base_layer.", ""): value for name, value in kept.items()}
    assert expected.keys() == base_of(plain).keys()
    for name, value in base_of(plain).items():
        assert torch.equal(expected[name], value), name
    # In torch 2.8 the scheduler of stochastic averages has a function among its values.
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=average != "stochastic")
    assert checkpoint["state_dict"].keys() == adapter_state_dict(module).keys()
    stored = [*checkpoint.get("current_model_state", {}), *checkpoint.get("averaging_state", {})]
    assert not any("base_layer" in name or "net.3" in name for name in stored)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_quantised_base_keeps_its_bits(tmp_path: Path, average: str) -> None:
    module, plain = Regressor(width=64), Regressor(width=64)
    for model in (module, plain):
        quantize_model(model, "nf4")
    fit(tmp_path, module, AVERAGES[average](), PeraCallback(2), enable_checkpointing=False)
    for index in (0, 2):
        assert torch.equal(module.net[index].base_layer.weight, plain.net[index].weight)
        assert module.net[index].pera_B.any()


def test_the_average_is_that_of_the_steps(tmp_path: Path) -> None:
    watch, module = Watch(), Regressor()
    fit(tmp_path, module, PeraCallback(2), weight_average(), watch, enable_checkpointing=False)
    for name, value in adapter_state_dict(module).items():
        mean = torch.stack([seen[name] for seen in watch.seen]).mean(dim=0)
        # Summed up step by step in float32.
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, watch.seen[-1][name])


def test_the_exponential_average_is_that_of_the_steps(tmp_path: Path) -> None:
    watch, module = Watch(), Regressor()
    fit(tmp_path, module, PeraCallback(2), exponential_average(decay=0.5), watch, enable_checkpointing=False)
    for name, value in adapter_state_dict(module).items():
        mean = watch.seen[0][name]
        for seen in watch.seen[1:]:
            mean = 0.5 * mean + 0.5 * seen[name]
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)


def test_the_stochastic_average_is_that_of_the_epochs(tmp_path: Path) -> None:
    watch, module = Watch(), Regressor()
    average = StochasticWeightAveraging(0.02, swa_epoch_start=1)
    fit(tmp_path, module, PeraCallback(2), average, watch, enable_checkpointing=False, max_epochs=4)
    # Averaged at the beginning of the epochs 0 to 3, of four batches each; the first is the start value.
    for name, value in adapter_state_dict(module).items():
        if name.endswith("pera_B"):
            starts = [torch.zeros_like(value), *(watch.seen[step][name] for step in (3, 7, 11))]
            torch.testing.assert_close(value, torch.stack(starts).mean(dim=0), rtol=1e-5, atol=1e-6)


def test_validates_and_writes_the_average(tmp_path: Path) -> None:
    module = Regressor()
    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    callback = PeraCallback(2, adapter_dir=str(tmp_path / "adapter"))
    fit(tmp_path, module, callback, exponential_average(decay=0.5), best)
    written = Regressor()
    load_adapter(written, tmp_path / "adapter")
    validator = pl.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    assert validator.validate(written, verbose=False)[0]["val_loss"] == pytest.approx(best.best_model_score.item())


def test_a_fit_with_nothing_left_to_do_keeps_the_average(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for ckpt_path in (None, tmp_path / "last.ckpt"):
        callbacks = PeraCallback(2, adapter_dir=str(folder)), exponential_average(decay=0.9)
        fit(tmp_path, Regressor(), *callbacks, ModelCheckpoint(tmp_path, save_last=True), ckpt_path=ckpt_path)
        if ckpt_path is None:
            average = (folder / "adapter_model.safetensors").read_bytes()
    assert (folder / "adapter_model.safetensors").read_bytes() == average


@pytest.mark.parametrize("average", AVERAGES)
def test_goes_on_with_the_same_average(tmp_path: Path, average: str) -> None:
    whole, rest = Regressor(), Regressor()
    saving = ModelCheckpoint(tmp_path / "whole", save_top_k=-1, filename="{epoch}")
    fit(tmp_path, whole, PeraCallback(2), AVERAGES[average](), saving)
    options = {"ckpt_path": tmp_path / "whole" / "epoch=0.ckpt"}
    saving = ModelCheckpoint(tmp_path / "rest", save_top_k=-1, filename="{epoch}")
    fit(tmp_path, rest, PeraCallback(2), AVERAGES[average](), saving, **options)
    for name, value in adapter_state_dict(whole).items():
        assert torch.equal(adapter_state_dict(rest)[name], value), name


class WithBatchNorm(Regressor):
    def _build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 8), nn.Linear(8, 2))


def test_refuses_to_change_the_statistics_of_the_base(tmp_path: Path) -> None:
    module = WithBatchNorm()
    with pytest.raises(TrainingError, match="statistics of frozen batch norms"):
        fit(tmp_path, module, PeraCallback(2), StochasticWeightAveraging(0.02), enable_checkpointing=False)
    fit(tmp_path, WithBatchNorm(), PeraCallback(2), exponential_average(), enable_checkpointing=False)


def test_statistics_of_modules_trained_whole_may_change(tmp_path: Path) -> None:
    module = WithBatchNorm()
    callbacks = PeraCallback(2, modules_to_save=["net.1"]), StochasticWeightAveraging(0.02, swa_epoch_start=1)
    fit(tmp_path, module, *callbacks, enable_checkpointing=False)
    assert module.net[1].running_mean.any()
