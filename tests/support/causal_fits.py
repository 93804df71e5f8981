"""Fits of small language models on questions with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer, padded_batch, save_pretrained
from tests.support.trainers import cpu_trainer

QUESTIONS = [("aaaaa? ", "alpha"), ("bbb? ", "beta"), ("cccccc? ", "gamma [1]"), ("dd? ", "delta {2}")]


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings = {"max_epochs": 1, "enable_checkpointing": False, "log_every_n_steps": 1}
    return cpu_trainer(folder, *callbacks, **{**settings, **options})


def loader(batches: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def save_llama(folder: Path) -> str:
    """A pretrained model with dropout."""
    torch.manual_seed(1)
    return save_pretrained(folder, tiny_llama(attention_dropout=0.3))


def unequal_batches() -> list[dict[str, Tensor]]:
    """Batches of unequal size, so that averages over batches and over tokens differ."""
    tokenizer = character_tokenizer()
    return [padded_batch(tokenizer, QUESTIONS[:1]), padded_batch(tokenizer, QUESTIONS[1:])]
