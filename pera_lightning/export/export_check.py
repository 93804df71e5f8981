"""What a language model's export is compared on, and PEFT as the way to load it back."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pera_lightning.data.chat.conversations import BadRows, read_conversations
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.data.reading.row_files import read_rows
from pera_lightning.errors import ConfigError
from pera_lightning.export.certificate import Certificate, Reference
from pera_lightning.export.lora.peft_loading import load_by_peft
from pera_lightning.injection import remove_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCES = (
    "The capital of France is Paris, and the river that flows through it is the Seine.",
    "Water boils at 100 degrees Celsius at sea level; on a mountain it boils sooner.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "Question: If a train leaves at 9:40 and arrives at 11:05, how long does it take? Answer: 1 hour 25 minutes.",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "Dear Sir or Madam, I am writing to ask whether the position of gardener is still open.",
    "Le chat dort sur le canapé pendant que la pluie tombe.",
    "In 1969 two people walked on the Moon for the first time, while a third stayed in orbit.",
)
"""What a model is called with where the user names no rows."""


def sentence_inputs(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Sentences, by default `SENTENCES`, as calls of a model, one each.

    Raises:
        ConfigError: The tokenizer makes no token of one.
    """
    texts = sentences or SENTENCES
    found = [dict(tokenizer(text, return_tensors="pt")) for text in texts]
    for sentence, inputs in zip(texts, found, strict=True):
        if inputs["input_ids"].numel() == 0:
            raise ConfigError(
                "A model cannot be called without a token.",
                got=f"the prompt {sentence!r}",
                expected="text",
                fix="leave it out of the prompts",
            )
    return found


def row_inputs(path: Path, encoder: ChatEncoder, positions: int, model: nn.Module) -> list[dict[str, Any]]:
    """Rows of a training file as calls of a model, prompts and answers as in training.

    Args:
        path: A file that InstructionDataModule reads.
        encoder: With the options of the training.
        positions: Rows are taken until they have this many tokens together.
        model: That is to be called.

    Raises:
        ConfigError: A row is longer than the model has positions, or holds a token that it does not have.
        DataError: The file cannot be used.
    """
    found, count = [], 0
    for conversation in read_conversations(str(path), read_rows(path), "auto", BadRows("error")):
        for example in encoder.encode(conversation):
            found.append({"input_ids": torch.as_tensor(example.input_ids)[None]})
            count += len(example.input_ids)
        if count >= positions:
            break
    limits = ModelLimits.of(model)
    if limits is not None:
        rows = [call["input_ids"] for call in found]
        largest, longest = max(int(row.max()) for row in rows), max(row.numel() for row in rows)
        limits.check_rows(path.name, largest_id=largest, longest=longest, shorter="leave longer rows out")
    return found


def check_with_peft(model: nn.Module, folder: Path, reference: Reference) -> Certificate:
    """Load an export by PEFT into the base of an adapted model, whose own adapter is taken out, and compare.

    Raises:
        ExportError: PEFT leaves a part of it out.
    """
    exported = load_by_peft(remove_adapter(model), folder)
    return reference.compare(exported, f"PEFT {version('peft')}")
