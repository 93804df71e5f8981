"""A text such as "no" or "false" where True or False is meant counted as true without a word."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pera_lightning import load_adapter
from pera_lightning.callback.callback import PeraCallback
from pera_lightning.cli.push import push
from pera_lightning.config import PeraConfig
from pera_lightning.data.classification import ClassificationDataModule
from pera_lightning.data.commonsense import CommonsenseDataModule
from pera_lightning.data.glue import GlueDataModule
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.text import TextDataModule
from pera_lightning.errors import ConfigError
from pera_lightning.export.gguf.export_merged_gguf import export_merged_gguf
from pera_lightning.export.merged.merged_model import export_merged
from pera_lightning.models.causal_lm import PeraCausalLM
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
from pera_lightning.models.pretrained_module import PretrainedModule
from pera_lightning.models.sequence_classifier import PeraSequenceClassifier

CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (PeraConfig, {}),
    (PeraCallback, {}),
    (PeraCausalLM, {"pretrained": "nowhere"}),
    (PeraSequenceClassifier, {"pretrained": "nowhere"}),
    (InstructionDataModule, {"train_files": "rows.jsonl"}),
    (CommonsenseDataModule, {"train_file": "rows.json"}),
    (GlueDataModule, {"task": "cola"}),
    (ClassificationDataModule, {"train_files": "rows.csv"}),
    (TextDataModule, {"train_files": "text.txt"}),
    (FSDP2Strategy, {}),
    (load_adapter, {"model": nn.Linear(1, 1), "directory": "nowhere"}),
    (export_merged, {"adapter_dir": "nowhere", "out_dir": "out"}),
    (export_merged_gguf, {"adapter_dir": "nowhere", "out_dir": "out"}),
    (push, {"folder": "nowhere", "repo": "me/mine"}),
]


def flags_of(call: Callable[..., Any]) -> list[str]:
    options = dict(inspect.signature(call).parameters)
    if isinstance(call, type) and issubclass(call, PretrainedModule):
        options |= inspect.signature(PretrainedModule).parameters
    return [name for name, option in options.items() if isinstance(option.default, bool)]


CASES = [(call, given, flag) for call, given in CALLS for flag in flags_of(call)]


def test_there_are_flags() -> None:
    assert len(CASES) >= 25


@pytest.mark.parametrize("text", ["false", "no", 0, None])
@pytest.mark.parametrize(("call", "given", "flag"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_only_true_and_false_are_flags(
    call: Callable[..., Any], given: dict[str, Any], flag: str, text: object, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=flag):
        call(**given, **{flag: text})


@pytest.mark.parametrize("option", ["max_length", "batch_size"])
def test_a_flag_is_no_number(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        InstructionDataModule(train_files="rows.jsonl", **{option: True})


def test_rows_without_padding_have_no_packs() -> None:
    with pytest.raises(ConfigError, match="contradict"):
        InstructionDataModule(train_files="rows.jsonl", padding_free=True, pack_length=2048)
