"""Fits over quantised bases, by Lightning's plugin and by PeraCausalLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import BitsandbytesPrecision
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from pera_lightning import PeraCallback, PeraCausalLM, load_adapter, merge_adapter
from pera_lightning.injection import adapted_layers
from pera_lightning.models.answer_loss import answer_logits, answer_loss
from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is no CUDA device to page from:UserWarning"),
]

QUESTIONS = [("aaaaa? ", "alpha"), ("bbb? ", "beta")]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(1)
    return save_pretrained(tmp_path / "pretrained", tiny_llama(hidden_size=64, intermediate_size=96))


def batches() -> DataLoader[Any]:
    return DataLoader([padded_batch(character_tokenizer(), QUESTIONS)] * 4, batch_size=None)  # type: ignore[arg-type]


def make_trainer(folder: Path, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [PeraCallback(rank=2)],
    }
    return pl.Trainer(**{**settings, **options})


class SomebodysModule(pl.LightningModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.net = AutoModelForCausalLM.from_pretrained(folder).train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return answer_loss(*answer_logits(self.net, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=0.01)


@pytest.mark.parametrize("mode", ["nf4", "nf4-dq", "fp4", "int8"])
def test_lightnings_plugin_end_to_end(tmp_path: Path, folder: str, accelerator: str, cuda: Any, mode: Any) -> None:
    module = SomebodysModule(folder)
    plugin = BitsandbytesPrecision(mode, ignore_modules={"net.lm_head"})
    make_trainer(tmp_path, accelerator=accelerator, plugins=[plugin]).fit(module, batches())
    layers = dict(adapted_layers(module))
    assert {layer.quantization for layer in layers.values()} == {mode}
    assert all(layer.pera_B.abs().max() > 0 for layer in layers.values())


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("quantization", ["nf4-dq", "int8"])
def test_trains_saves_loads_and_merges(
    tmp_path: Path, folder: str, device: torch.device, accelerator: str, quantization: Any, optimizer: Any
) -> None:
    module = PeraCausalLM(
        folder, quantization=quantization, dtype="bfloat16", optimizer=optimizer, gradient_checkpointing=True
    )
    make_trainer(tmp_path, accelerator=accelerator).fit(module, batches())
    fresh = PeraCausalLM(folder, quantization=quantization, dtype="bfloat16")
    fresh.configure_model()
    load_adapter(fresh.model, tmp_path / "adapter")
    ids = torch.randint(3, 64, (2, 7), device=device)
    with torch.no_grad():
        expected = fresh.model.to(device).eval()(ids).logits
        merge_adapter(fresh.model)
        found = fresh.model(ids).logits
    assert (found - expected).norm() < 0.05 * expected.norm()  # bfloat16 keeps 8 bits; int8 rounds its inputs too
