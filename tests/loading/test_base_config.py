"""A config of a base model that is none of its weights: it took gigabytes, or no end, or gave outputs that are NaN."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning import PeraCausalLM, PeraSequenceClassifier
from pera_lightning.errors import ConfigError
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

BAD = {
    "num_hidden_layers": (10**30, 1000),
    "vocab_size": (2**31,),
    "intermediate_size": (2**31,),
    "rms_norm_eps": (float("-inf"), float("nan"), -1.0, 3),
    "rope_theta": (0.0, -1.0),
    "attention_dropout": (1.5, -0.1),
    "hidden_size": (2**31,),
    "sliding_window": ("x",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_pretrained(folder, tiny_llama())
    return folder


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "rope_theta" in values and "rope_parameters" in config:
        config["rope_parameters"] |= values
    path.write_text(json.dumps(config | values))


@pytest.mark.parametrize("make", [PeraCausalLM, PeraSequenceClassifier])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_refused_before_anything_is_built(folder: Path, key: str, value: Any, make: Any) -> None:
    before = (folder / "config.json").read_text()
    changed(folder, **{key: value})
    module = make(str(folder)) if make is PeraCausalLM else make(str(folder), num_labels=2)
    try:
        # Some values are none to transformers either.
        ours = "its config" if value != 3 else "cannot be loaded"
        with pytest.raises(ConfigError, match=ours):
            module.configure_model()
    finally:
        (folder / "config.json").write_text(before)


def test_a_good_one_is_loaded(folder: Path) -> None:
    module = PeraCausalLM(str(folder), dtype="float32")
    module.configure_model()
    assert torch.isfinite(module.model(input_ids=torch.arange(5)[None]).logits).all()


def test_a_damaged_header_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    [weights] = tmp_path.glob("*.safetensors")
    weights.write_bytes(struct.pack("<Q", 7) + b"{broken" + weights.read_bytes())
    with pytest.raises(ConfigError, match=r"no safetensors file"):
        PeraCausalLM(str(tmp_path)).configure_model()
