"""What version 0.1 wrote still works: its adapter folders, checkpoints, exports, configs and names."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pera_lightning
from pera_lightning import PeraCallback, inject_lora, load_adapter
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
from tests.support.trainers import SAFE_LOADING, cpu_trainer

FOLDER = Path(__file__).parent / "golden" / "version_0_1"
EXPECTED = json.loads((FOLDER / "outputs.json").read_text())
INPUTS = torch.tensor(EXPECTED["inputs"])
# Another torch may add up in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PUBLIC = """AdapterPictures AdapterSet CommonsenseDataModule GlueDataModule InjectionReport InstructionDataModule
PeraCallback PeraCausalLM PeraConfig PeraError PeraLinear PeraSequenceClassifier TextDataModule adapter_disabled
adapter_state_dict export_lora export_merged inject_adapter inject_lora load_adapter merge_adapter parallelize_adapted
parameter_groups quantize_model remove_adapter save_adapter""".split()
MOVED = ["adapted_model.load_adapted_model", "evaluation.lm_eval_model", "fsdp2.FSDP2Strategy"]


class Net(pl.LightningModule):
    """The module that the files belong to."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)]
        self.net = nn.Sequential(*parts)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in self.net.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) / 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn(16, 6, generator=generator), torch.randn(16, 2, generator=generator)
        return DataLoader(TensorDataset(*rows), batch_size=4)


def test_an_adapter_folder() -> None:
    module = Net()
    load_adapter(module, FOLDER / "adapter")
    torch.testing.assert_close(module.net(INPUTS), torch.tensor(EXPECTED["outputs"]), **CLOSE)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning", "ignore:The loaded checkpoint was produced")
def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    module = Net()
    callbacks = PeraCallback(2, coefficient_scale="auto"), ModelCheckpoint(tmp_path, every_n_epochs=1)
    trainer = cpu_trainer(tmp_path, *callbacks, max_epochs=4)
    trainer.fit(module, ckpt_path=FOLDER / "run.ckpt", **SAFE_LOADING)
    assert trainer.current_epoch == 4
    torch.testing.assert_close(module.net(INPUTS), torch.tensor(EXPECTED["after two more epochs"]), **CLOSE)


def test_a_checkpoint_becomes_a_folder(tmp_path: Path) -> None:
    consolidate = importlib.import_module("pera_lightning.checkpoint.training.consolidation").consolidate
    consolidate(FOLDER / "run.ckpt", tmp_path / "adapter")
    module = Net()
    load_adapter(module, tmp_path / "adapter")
    torch.testing.assert_close(module.net(INPUTS), torch.tensor(EXPECTED["outputs"]), **CLOSE)


def test_an_adapter_folder_is_replaced(tmp_path: Path) -> None:
    """It has no checksums; the new one has."""
    shutil.copytree(FOLDER / "adapter", tmp_path / "adapter")
    module = Net()
    load_adapter(module, tmp_path / "adapter")
    pera_lightning.save_adapter(module, tmp_path / "adapter")
    again = Net()
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again.net(INPUTS), module.net(INPUTS))


def test_an_export_is_a_start() -> None:
    module = Net()
    inject_lora(module, FOLDER / "lora")
    torch.testing.assert_close(module.net(INPUTS), torch.tensor(EXPECTED["outputs"]), **CLOSE)


def test_a_config_that_names_the_strategy_of_then() -> None:
    assert "pera_lightning.integration.fsdp2.FSDP2Strategy" in (FOLDER / "fsdp2.yaml").read_text()
    parsed = parse_fit("estimate", ["--config", str(FOLDER / "fit.yaml"), "--config", str(FOLDER / "fsdp2.yaml")])
    path = parsed["trainer"]["strategy"]["class_path"]
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is FSDP2Strategy


@pytest.mark.parametrize("name", MOVED)
def test_names_that_the_readme_told_of(name: str) -> None:
    module, _, found = name.rpartition(".")
    assert callable(getattr(importlib.import_module(f"pera_lightning.integration.{module}"), found))


def test_public_names_of_then_are_there() -> None:
    assert set(PUBLIC) <= set(pera_lightning.__all__)
