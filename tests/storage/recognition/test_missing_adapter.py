from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from pera_lightning.errors import AdapterFileError


def checkpoint(path: Path) -> Path:
    torch.save({"state_dict": {}, "global_step": 1}, path)
    return path


def text(path: Path) -> Path:
    path.write_text("words")
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def lora(path: Path) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    return path


def merged(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"weight": torch.ones(1)}, path / "model.safetensors")
    return path


def weights(path: Path) -> Path:
    return adapter(path) / "adapter_model.safetensors"


def adapter(path: Path) -> Path:
    model = nn.Sequential(nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    save_adapter(model, path)
    return path


def run(path: Path) -> Path:
    path.mkdir()
    adapter(path / "adapter")
    return path


def nothing(path: Path) -> Path:
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            checkpoint,
            r"(?s)here, which is a checkpoint.*fix: .*`consolidate --checkpoint \S*here .*ckpt_path",
        ),
        (text, "(?s)here, which is a text file.*fix: .*check the path"),
        (empty, "here, which is an empty file"),
        (lora, r"(?s)peft_type 'LORA'.*fix: .*inject_lora\(model, folder\).*--pera.init_from"),
        (merged, "(?s)here, which is a whole model .*fix: .*from_pretrained"),
        (weights, r"(?s)a safetensors file, of a PERA adapter's folder.*fix: .*load_adapter\(model, folder\)"),
        (run, "(?s)no file .*here/adapter_config.json.*fix: .*name .*here/adapter"),
        (nothing, "(?s)no file .*here/adapter_config.json.*fix: .*check the path"),
    ],
)
def test_what_is_there_instead_is_said(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(nn.Sequential(nn.Linear(4, 4)), make(tmp_path / "here"))
