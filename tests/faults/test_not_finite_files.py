"""Values that are not finite were written over a good checkpoint or adapter folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save_file
from torch import Tensor, nn

from pera_lightning import (
    PeraConfig,
    adapter_state_dict,
    export_lora,
    inject_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.cli.push import push
from pera_lightning.errors import AdapterFileError, ExportError, InjectionError, TrainingError
from tests.support.averaging import exponential_average
from tests.support.earlier_adapters import forget_checksums
from tests.support.models import Regressor
from tests.support.spoiled import content, fit, refused


class Ruined(pl.Callback):
    """Makes a weight NaN after a step, as an optimizer may whose gradients were finite."""

    def __init__(self, at: int, name: str = "net.0.pera_B") -> None:
        self.at, self.name = at, name

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.at:
            dict(pl_module.named_parameters())[self.name].data.view(-1)[:2] = math.nan


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 1},
        {"every_n_train_steps": 1, "save_weights_only": True},
        {"every_n_train_steps": 1, "save_last": True, "save_top_k": 0},
        {"every_n_train_steps": 1, "monitor": "train_loss", "save_top_k": 1},
        {"every_n_train_steps": 1, "monitor": "train_loss", "save_top_k": 2, "mode": "max", "save_last": True},
        {"every_n_train_steps": 1, "filename": "same", "enable_version_counter": False},
        {"save_last": "link"},
        {"every_n_train_steps": 1, "save_on_exception": True},
    ],
    ids=str,
)
def test_no_checkpoint_is_replaced(tmp_path: Path, options: dict[str, Any]) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", **options)
    message = refused(tmp_path, Regressor(), Ruined(6), kept)
    assert "2 values of 'net.0.pera_B'" in message
    assert list((tmp_path / "kept").iterdir())
    assert "go on from the last good checkpoint, of step" in message


@pytest.mark.parametrize(
    ("name", "pera"),
    [
        ("net.0.pera_A", {}),
        ("net.2.pera_h", {}),
        ("net.3.weight", {"modules_to_save": ["3"]}),
        ("net.0.base_layer.bias", {"bias": "adapted"}),
    ],
)
@pytest.mark.parametrize("at", [5, 8])
def test_no_part_of_the_adapter_is_overlooked(tmp_path: Path, name: str, pera: dict[str, Any], at: int) -> None:
    message = refused(tmp_path, Regressor(), Ruined(at, name), pera=pera, enable_checkpointing=False)
    assert f"the adapter in memory holds 2 values of '{name}'" in message
    assert ("The loss is" if at == 5 else "The trained weights are") in message


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback:UserWarning")
def test_averaged_weights_count_too(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2)
    message = refused(tmp_path, Regressor(), exponential_average(), Ruined(3), kept)
    assert "'net.0.pera_B'" in message


class Terminating(pl.Callback):
    """The system asks the run to end, right after a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise SIGTERMException


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_sigterm_writes_nothing_over_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(SIGTERMException):
        fit(tmp_path, Regressor(), ModelCheckpoint(kept), Terminating())
    path = kept / "last-sigterm.ckpt"
    before = path.read_bytes()
    words = r"SIGTERM; no checkpoint is written(.|\n)*2 values of 'net\.0\.pera_B'"
    with pytest.warns(UserWarning, match=words), pytest.raises(SIGTERMException):
        fit(tmp_path, Regressor(), ModelCheckpoint(kept), Ruined(6), Terminating())
    assert path.read_bytes() == before


class Unmeasured(Regressor):
    """Its metric is no number."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(math.nan))


def test_no_checkpoint_is_best_by_a_metric_that_is_no_number(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "kept", monitor="val_loss")
    module = Unmeasured()
    with pytest.warns(UserWarning, match="val_loss was never a finite number"):
        fit(tmp_path, module, best, limit_val_batches=1)
    assert best.best_model_path
    loaded = Regressor()
    load_adapter(loaded, tmp_path / "adapter")
    last = adapter_state_dict(module)
    assert all(torch.equal(value, last[name]) for name, value in adapter_state_dict(loaded).items())


def test_after_the_fit_too(tmp_path: Path) -> None:
    module = Regressor()
    trainer = fit(tmp_path, module)
    path = tmp_path / "own.ckpt"
    for weights_only in (False, True):
        trainer.save_checkpoint(path, weights_only=weights_only)
        before = path.read_bytes()
        with torch.no_grad():
            module.net[2].pera_A[0, 0] = math.inf
        with pytest.raises(TrainingError, match=r"1 values of 'net\.2\.pera_A' at step 8, for .*own\.ckpt"):
            trainer.save_checkpoint(path, weights_only=weights_only)
        assert path.read_bytes() == before
        with torch.no_grad():
            module.net[2].pera_A[0, 0] = 0


def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    inject_adapter(model, PeraConfig(2, target_modules=["0"], modules_to_save=["1"]))
    return model


@pytest.mark.parametrize("key", ["0.pera_A", "0.pera_B", "0.pera_h", "1.weight", "1.bias"])
def test_save_adapter_refuses_before_it_writes(tmp_path: Path, key: str) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    before = content(tmp_path)
    adapter_state_dict(model)[key].view(-1)[0] = math.nan
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(AdapterFileError, match=f"nothing is written(.|\n)*1 values of '{key}', for {folder}"):
            save_adapter(model, folder)
    assert content(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_consolidate_refuses_before_it_writes(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Regressor())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    consolidate(tmp_path / "good.ckpt", tmp_path / "out")
    before = content(tmp_path / "out")
    held = torch.load(tmp_path / "good.ckpt", weights_only=True)
    held["state_dict"]["net.0.pera_A"][1, 1] = math.inf
    # As an earlier version may have written it.
    torch.save(held, tmp_path / "bad.ckpt")
    with pytest.raises(AdapterFileError, match=r"1 values of 'net\.0\.pera_A'"):
        consolidate(tmp_path / "bad.ckpt", tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_nothing_is_uploaded_or_exported(tmp_path: Path) -> None:
    model = adapted()
    folder = save_adapter(model, tmp_path / "adapter")
    push(str(folder), "me/mine", dry_run=True)
    tensors = adapter_state_dict(model)
    tensors["0.pera_A"][0, 0] = math.inf
    # As an earlier version may have written it.
    forget_checksums(folder)
    save_file({name: value.clone() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"1 values of '0\.pera_A'"):
        push(str(folder), "me/mine", dry_run=True)
    for source, error in ((folder, AdapterFileError), (model, ExportError)):
        with pytest.raises(error, match="not finite"):
            export_lora(source, tmp_path / "lora", to="safetensors")
    with pytest.raises(InjectionError, match="NaN or infinity"):
        merge_adapter(model)
    assert not (tmp_path / "lora").exists()


class Masked(nn.Linear):
    """A head with a mask that is infinite by design."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.mask.nan_to_num(neginf=0)


class WithMask(Regressor):
    def _build(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), Masked())


def test_a_mask_that_is_infinite_by_design_is_none_of_this(tmp_path: Path) -> None:
    module = WithMask()
    fit(tmp_path, module, pera={"modules_to_save": ["3"]})
    load_adapter(WithMask(), tmp_path / "adapter")
    save_adapter(module, tmp_path / "again")
    module.net[3].mask[0] = math.nan
    with pytest.raises(AdapterFileError, match=r"values of 'net\.3\.mask'"):
        save_adapter(module, tmp_path / "again")
    other = WithMask()
    other.net[3].mask.zero_()
    with pytest.raises(AdapterFileError, match=r"1 values of 'net\.3\.mask'"):
        load_adapter(other, tmp_path / "again")
