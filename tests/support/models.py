"""Tiny random models of real architectures, and a LightningModule like somebody else's."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning.injection import adapted_layers, token_layers
from pera_lightning.layers import PeraEmbedding


def tiny_llama(**options: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **options})).eval()


def tied_llama() -> nn.Module:
    """Whose head has the weight of the embedding."""
    return tiny_llama(tie_word_embeddings=True)


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def tiny_bert_classifier() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return BertForSequenceClassification(config).eval()


def token_ids(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(3, 64, (rows, length))


def randomise_adapter(model: nn.Module, scale: float = 0.3) -> None:
    """Give B, h (of embeddings: A too) and token rows values as training would, so that the adapter does something."""
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.pera_B.normal_(std=scale)
            if isinstance(layer, PeraEmbedding):
                layer.pera_A.normal_(std=scale)
            if layer.pera_h is not None:
                layer.pera_h.normal_(std=scale)
        for _, rows in token_layers(model):
            rows.token_rows.delta.normal_(std=scale)


class Regressor(pl.LightningModule):
    """A small network built at the moment that `build_in` names."""

    def __init__(self, build_in: str = "__init__", width: int = 12) -> None:
        super().__init__()
        self.build_in = build_in
        self.width = width
        self.net: nn.Module | None = None
        if build_in == "__init__":
            self._build()

    def _build(self) -> None:
        if self.net is None:
            # The same base in every run, as if it were pretrained.
            with torch.random.fork_rng():
                torch.manual_seed(7)
                self.net = nn.Sequential(nn.Linear(6, self.width), nn.Tanh(), nn.Linear(self.width, 8), nn.Linear(8, 2))

    def setup(self, stage: str) -> None:
        if self.build_in == "setup":
            self._build()

    def configure_model(self) -> None:
        if self.build_in == "configure_model":
            self._build()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.02)

    def _loader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(32, 6, generator=generator)
        y = torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
        return DataLoader(TensorDataset(x, y), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader
