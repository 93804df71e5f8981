from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pera_lightning import PeraCallback, PeraConfig, load_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.injection import adapted_layers
from tests.support.callback_fits import best_checkpoint, make_trainer, trained_regressor
from tests.support.models import Regressor

# Lightning's remarks about tests that resume in another folder or with fewer callbacks than the first run.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


ADAPTER_NAMES = ("pera_A", "pera_B", "pera_h")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[pl.Trainer, Regressor, Path]:
    return trained_regressor(tmp_path)


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_trains_the_adapter_and_nothing_else(tmp_path: Path, build_in: str) -> None:
    plain = Regressor()
    module = Regressor(build_in)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False)
    trainer.fit(module)
    layers = dict(adapted_layers(module))
    assert list(layers) == ["net.0", "net.2"]
    for name, layer in layers.items():
        assert layer.pera_B.abs().sum() > 0
        assert torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight)
        assert torch.equal(layer.base_layer.bias, plain.get_submodule(name).bias)
    assert torch.equal(module.net[3].weight, plain.net[3].weight)
    trainer.validate(module, verbose=False)
    assert dict(adapted_layers(module)) == layers


def test_learns(tmp_path: Path) -> None:
    module = Regressor()
    before = make_trainer(tmp_path).validate(module, verbose=False)[0]["val_loss"]
    make_trainer(tmp_path, PeraCallback(rank=2), max_epochs=20, enable_checkpointing=False).fit(module)
    after = make_trainer(tmp_path).validate(module, verbose=False)[0]["val_loss"]
    assert after < 0.7 * before


def assert_adapter_only(path: Path) -> None:
    state = torch.load(path, weights_only=True)["state_dict"]
    assert sorted(state) == sorted(f"net.{i}.{name}" for i in (0, 2) for name in ADAPTER_NAMES)


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_hold_the_adapter_only(tmp_path: Path, weights_only: bool) -> None:
    checkpoint = best_checkpoint(tmp_path, save_last=True, save_weights_only=weights_only)
    trainer = make_trainer(tmp_path, PeraCallback(rank=2), checkpoint)
    trainer.fit(Regressor())
    trainer.save_checkpoint(tmp_path / "by_hand.ckpt", weights_only=weights_only)
    for path in (checkpoint.best_model_path, checkpoint.last_model_path, tmp_path / "by_hand.ckpt"):
        assert_adapter_only(Path(path))


@pytest.mark.parametrize("build_in", ["__init__", "setup", "configure_model"])
def test_runs_from_a_checkpoint(trained: tuple[pl.Trainer, Regressor, Path], tmp_path: Path, build_in: str) -> None:
    _, module, best = trained
    state = torch.load(best, weights_only=True)["state_dict"]
    for run in ("validate", "test", "predict"):
        fresh = Regressor(build_in)
        trainer = make_trainer(tmp_path / run, PeraCallback(rank=2))
        options = {} if run == "predict" else {"verbose": False}
        getattr(trainer, run)(fresh, ckpt_path=best, **options)
        for key, value in state.items():
            assert torch.equal(dict(fresh.named_parameters())[key], value)
        assert torch.equal(fresh.net[0].base_layer.weight, module.net[0].base_layer.weight)


def test_resume_equals_one_long_run_bit_by_bit(tmp_path: Path) -> None:
    def run(epochs: int, folder: Path, ckpt_path: Path | None = None) -> tuple[pl.Trainer, Regressor]:
        torch.manual_seed(1)
        module = Regressor()
        trainer = make_trainer(folder, PeraCallback(rank=2), max_epochs=epochs)
        trainer.fit(module, ckpt_path=ckpt_path)
        return trainer, module

    _, long = run(4, tmp_path / "long")
    half, _ = run(2, tmp_path / "half")
    path = Path(half.checkpoint_callback.best_model_path)
    resumed_trainer, resumed = run(4, tmp_path / "resumed", path)
    assert resumed_trainer.global_step == 16
    for (name, ours), theirs in zip(resumed.named_parameters(), long.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_dropout_may_change_between_runs(trained: tuple[pl.Trainer, Regressor, Path], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "other", PeraCallback(rank=2, dropout=0.1))
    trainer.test(Regressor(), ckpt_path=trained[2], verbose=False)


def test_resuming_from_weights_only_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2))
    trainer.fit(Regressor())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(Exception, match=r"only the model|save_weights_only"):
        make_trainer(tmp_path, PeraCallback(rank=2)).fit(Regressor(), ckpt_path=tmp_path / "weights.ckpt")


def test_says_that_the_adapter_of_an_earlier_fit_will_be_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(**options: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            make_trainer(tmp_path, PeraCallback(rank=2), max_steps=1, **options).fit(Regressor())
        return [record.message for record in caplog.records if "will replace" in record.message]

    assert said() == []
    assert said() == [f"PERA: {tmp_path / 'adapter'} holds an adapter, which this fit's will replace at its end"]
    assert said(fast_dev_run=True) == []


def test_logs_one_line_and_the_energy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, coefficient_scale="auto"), enable_checkpointing=False)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer.fit(Regressor())
    lines = [record.message for record in caplog.records if "adapted layers" in record.message]
    assert lines == ["PERA: 2 adapted layers; 82 trainable of 288 parameters (28.47 %); output head left alone: net.3"]
    assert trainer.callback_metrics["pera_energy"] > 0


def test_energy_can_be_turned_off(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, energy_every_n_steps=0), enable_checkpointing=False)
    trainer.fit(Regressor())
    assert "pera_energy" not in trainer.callback_metrics


@pytest.mark.parametrize(("every", "seen"), [(1, [1, 2, 3, 4]), (2, [2, 4])])
def test_the_energy_is_computed_once_per_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, seen: list[int]
) -> None:
    steps = []

    def noted(model: pl.LightningModule) -> torch.Tensor:
        steps.append(model.trainer.global_step)
        return torch.zeros(())

    monkeypatch.setattr("pera_lightning.callback.energy_log.mean_energy_tensor", noted)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": False}
    make_trainer(tmp_path, PeraCallback(rank=2, energy_every_n_steps=every), **options).fit(Regressor())
    assert steps == seen


def test_writes_the_adapter_of_the_best_checkpoint(trained: tuple[pl.Trainer, Regressor, Path], tmp_path: Path) -> None:
    _, _, best = trained
    fresh = Regressor()
    load_adapter(fresh, tmp_path / "adapter")
    state = torch.load(best, weights_only=True)["state_dict"]
    parameters = dict(fresh.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in state.items())


def test_writes_the_last_adapter_without_a_monitored_checkpoint(tmp_path: Path) -> None:
    module = Regressor()
    callback = PeraCallback(rank=2, adapter_dir=str(tmp_path / "elsewhere"))
    make_trainer(tmp_path, callback, enable_checkpointing=False).fit(module)
    fresh = Regressor()
    load_adapter(fresh, tmp_path / "elsewhere")
    assert torch.equal(fresh.net[0].pera_B, module.net[0].pera_B)


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, PeraCallback(rank=2), fast_dev_run=True).fit(Regressor())
    assert not list(tmp_path.rglob("adapter*"))


@pytest.mark.filterwarnings("ignore:PERA. the best checkpoint .* is of another run:UserWarning")
def test_a_best_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    shared = best_checkpoint(tmp_path)
    make_trainer(tmp_path, PeraCallback(rank=2), shared, max_epochs=4).fit(Regressor())
    shared.best_model_score = torch.tensor(-1.0)
    shared.kth_value = torch.tensor(-1.0)
    second = Regressor()
    make_trainer(tmp_path / "second", PeraCallback(rank=3), shared, max_epochs=1).fit(second)
    fresh = Regressor()
    load_adapter(fresh, tmp_path / "second" / "adapter")
    assert torch.equal(fresh.net[0].pera_B, second.net[0].pera_B)


def test_options_in_one_object(tmp_path: Path) -> None:
    callback = PeraCallback(config=PeraConfig(2, terms="square"))
    module = Regressor()
    make_trainer(tmp_path, callback, enable_checkpointing=False).fit(module)
    assert module.net[0].pera_h.shape == (2,)
    with pytest.raises(ConfigError, match="twice"):
        PeraCallback(rank=4, config=PeraConfig())


def test_module_pickles_and_copies_after_fit(trained: tuple[pl.Trainer, Regressor, Path]) -> None:
    _, module, _ = trained
    x = torch.randn(3, 6)
    module.trainer = None
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
        assert set(twin.state_dict()) == set(module.state_dict())


class WithBatchNorm(Regressor):
    def _build(self) -> None:
        super()._build()
        self.net.insert(1, torch.nn.BatchNorm1d(self.width))


def test_running_statistics_of_the_frozen_base_stay(tmp_path: Path) -> None:
    module = WithBatchNorm()
    make_trainer(tmp_path, PeraCallback(rank=2), enable_checkpointing=False).fit(module)
    assert torch.equal(module.net[1].running_mean, torch.zeros(12))


def test_modules_to_save_are_trained_and_stored_whole(tmp_path: Path) -> None:
    module = Regressor()
    start = module.net[3].weight.clone()
    trainer = make_trainer(tmp_path, PeraCallback(rank=2, modules_to_save=["net.3"]))
    trainer.fit(module)
    assert not torch.equal(module.net[3].weight, start)
    path = trainer.checkpoint_callback.best_model_path
    assert {"net.3.weight", "net.3.bias"} <= set(torch.load(path, weights_only=True)["state_dict"])
    fresh = Regressor()
    make_trainer(tmp_path / "test", PeraCallback(rank=2, modules_to_save=["net.3"])).test(
        fresh, ckpt_path=path, verbose=False
    )
    assert torch.equal(fresh.net[3].weight, module.net[3].weight)


def test_compiled_inner_network_keeps_clean_names(tmp_path: Path) -> None:
    module = Regressor()
    # Only the wrapper and its names matter here, not the compiled code.
    module.net = torch.compile(module.net, backend="eager")
    trainer = make_trainer(tmp_path, PeraCallback(rank=2))
    trainer.fit(module)
    path = Path(trainer.checkpoint_callback.best_model_path)
    assert_adapter_only(path)
    compiled = Regressor()
    compiled.net = torch.compile(compiled.net, backend="eager")
    for fresh in (Regressor(), compiled):
        make_trainer(tmp_path / "test", PeraCallback(rank=2)).test(fresh, ckpt_path=path, verbose=False)
        ours, theirs = dict(adapted_layers(fresh)), dict(adapted_layers(module))
        assert torch.equal(ours["net.0"].pera_B, theirs["net.0"].pera_B)
