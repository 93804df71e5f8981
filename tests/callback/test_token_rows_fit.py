"""Rows of special tokens, trained under a Trainer through PeraCallback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback, PeraConfig, inject_adapter, load_adapter, merge_adapter, quantize_model
from pera_lightning.errors import CheckpointError
from pera_lightning.injection import adapter_layers
from pera_lightning.loading.narrow_weights import widen_activations
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.averaging import exponential_average
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.module_state import values
from tests.support.trainers import cpu_trainer

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")

IDS = [5, 9, 20]
KEY = "lm.model.embed_tokens.token_rows.delta"


def untied_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=False)


def tied_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=True)


class Speaker(pl.LightningModule):
    """Somebody's module around a causal language model."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.lm = make().train()

    def training_step(self, ids: Tensor, batch_idx: int) -> Tensor:
        return self.lm(input_ids=ids, labels=ids).loss

    def validation_step(self, ids: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.lm(input_ids=ids, labels=ids).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((value for value in self.parameters() if value.requires_grad), lr=0.02)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(3, 20, (6, 8), generator=generator)
        ids[:, 2], ids[:, 5] = 5, 9
        return DataLoader(ids, batch_size=3)

    val_dataloader = train_dataloader


def trainer_in(folder: Path, callback: PeraCallback, *others: pl.Callback, epochs: int = 2) -> pl.Trainer:
    return cpu_trainer(folder, callback, *others, max_epochs=epochs, log_every_n_steps=1)


@pytest.mark.parametrize("make", [tied_llama, untied_llama, tiny_gpt2])
def test_the_listed_rows_and_the_adapters_change(make: Any, tmp_path: Path) -> None:
    module = Speaker(make)
    before = values(module)
    callback = PeraCallback(2, trainable_tokens=IDS)
    trainer = trainer_in(tmp_path, callback)
    trainer.fit(module)
    after = {name.replace(".base_layer", ""): value for name, value in values(module).items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for name, layer in adapter_layers(module):
        for own, parameter in layer.adapter().items():
            assert parameter.abs().sum() > 0, f"{name}.{own}"
    table = module.lm.get_input_embeddings()
    changed = (table.weight != table.base_layer.weight).any(dim=1).nonzero().flatten().tolist()
    # A tied head has a say in every token, an embedding only in those it sees.
    assert changed == ([5, 9] if make is untied_llama else IDS)
    folder = tmp_path / "adapter"
    fresh = Speaker(make)
    load_adapter(fresh.lm, folder)
    ids = next(iter(module.train_dataloader()))
    assert torch.equal(fresh.lm.eval()(input_ids=ids).logits, module.lm.eval()(input_ids=ids).logits)


def test_checkpoints(tmp_path: Path) -> None:
    """Adapter and rows alone, once; read back strictly, by the run that continues as well; other ids refused."""
    module = Speaker(tied_llama)
    trainer = trainer_in(tmp_path, PeraCallback(2, trainable_tokens=IDS))
    trainer.fit(module)
    path = trainer.checkpoint_callback.best_model_path
    state = torch.load(path, weights_only=True)["state_dict"]
    assert [key for key in state if ".pera_" not in key] == [KEY]
    loss = trainer.validate(module, verbose=False)[0]["val_loss"]
    again = Speaker(tied_llama)
    callback = PeraCallback(2, trainable_tokens=IDS)
    assert trainer_in(tmp_path, callback).validate(again, ckpt_path=path, verbose=False)[0]["val_loss"] == loss
    assert torch.equal(again.lm.lm_head.token_rows.delta, state[KEY])
    goes_on = Speaker(tied_llama)
    trainer_in(tmp_path / "more", PeraCallback(2, trainable_tokens=IDS), epochs=3).fit(goes_on, ckpt_path=path)
    assert not torch.equal(goes_on.lm.lm_head.token_rows.delta, state[KEY])
    for other in ([5, 9], [5, 9, 21], None):
        callback = PeraCallback(2, trainable_tokens=other)
        with pytest.raises(CheckpointError):
            trainer_in(tmp_path, callback).validate(Speaker(tied_llama), ckpt_path=path, verbose=False)


def test_weight_averages_have_the_rows_once(tmp_path: Path) -> None:
    module = Speaker(tied_llama)
    average = exponential_average(decay=0.5)
    trainer = trainer_in(tmp_path, PeraCallback(2, trainable_tokens=IDS), average)
    trainer.fit(module)
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    assert [key for key in state if ".pera_" not in key] == [KEY]


def test_with_activation_checkpointing() -> None:
    for make in (tied_llama, tiny_gpt2):
        gradients = []
        for checkpointing in (False, True):
            module = Speaker(make)
            if checkpointing:
                enable_gradient_checkpointing(module.lm)
            _inject(module)
            torch.manual_seed(1)
            module.training_step(next(iter(module.train_dataloader())), 0).backward()
            gradients.append(module.lm.lm_head.token_rows.delta.grad)
        torch.testing.assert_close(*gradients)


def _inject(module: pl.LightningModule) -> None:
    inject_adapter(module, PeraConfig(2, trainable_tokens=IDS))


def test_over_a_quantised_model_whose_embeddings_stay_narrow() -> None:
    """As `PeraCausalLM(quantization=...)` loads it on a CPU that is slow at bfloat16."""
    model = tiny_llama(hidden_size=64, intermediate_size=64, tie_word_embeddings=True).bfloat16()
    quantize_model(model, "nf4")
    widen_activations(model, torch.float32)
    ids = torch.arange(3, 24).view(3, 7)
    plain = model(input_ids=ids).logits
    inject_adapter(model, PeraConfig(2, trainable_tokens=IDS))
    assert torch.equal(model(input_ids=ids).logits, plain)
    with torch.no_grad():
        model.lm_head.token_rows.delta.normal_()
    trained = model(input_ids=ids).logits
    assert trained.dtype == torch.float32
    trained.square().sum().backward()
    assert model.lm_head.token_rows.delta.grad.abs().sum(dim=1).min() > 0
    merge_adapter(model, into="requantized")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model(input_ids=ids).logits, trained, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("tokens", ["[5, 9]", "{embed_tokens: [5, 9], lm_head: [7]}", "null"])
def test_on_the_command_line(tokens: str) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(PeraCallback, "pera")
    callback = parser.instantiate_classes(parser.parse_args([f"--pera.trainable_tokens={tokens}"])).pera
    expected = {"[": (5, 9), "{": {"embed_tokens": (5, 9), "lm_head": (7,)}, "n": None}[tokens[0]]
    assert callback.config.trainable_tokens == expected
