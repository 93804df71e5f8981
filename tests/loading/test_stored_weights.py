"""How much the weight files of a base hold: of those that transformers reads, and in bounded time."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from pera_lightning.loading.stored_weights import StoredWeights, WeightsDamage, weights_in
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def with_header(path: Path, text: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a":[' + b"[]," * 8_000_000 + b"[]]}", "more than 3,000,000 values"),
        (b'{"a":[' + b"{}," * 10_000_000 + b"{}]}", "more than 3,000,000 values"),
        (b" " * (33 << 20) + b"{}", "takes 34,"),
        (json.dumps({"x": ENTRY | {"shape": [1] * 17}}).encode(), "at most 16 sizes"),
        (b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b"9" * 4_000 + b"]}}", "4,000 digits"),
        (json.dumps({"x": ENTRY | {"shape": [10**60] * 16}}).encode(), "at most 16 sizes"),
        (json.dumps({"x": ENTRY | {"shape": [-1, 4]}}).encode(), "at most 16 sizes"),
        (json.dumps({"x": ENTRY | {"data_offsets": [0]}}).encode(), "data_offsets"),
        (json.dumps({"x": {"dtype": "F32"}}).encode(), "data_offsets"),
        (json.dumps({"x": 5}).encode(), "'x' is 5"),
        (b"[" * 100_000, "deep"),
        (b"[]", "no object"),
        (b"", "no safetensors"),
        (b'{"x":1,"x":2}', "twice"),
    ],
    ids=range(14),
)
def test_a_header_has_bounds(text: bytes, words: str, tmp_path: Path) -> None:
    with_header(tmp_path / "model.safetensors", text)
    start = time.process_time()
    with pytest.raises(WeightsDamage, match=words):
        weights_in(tmp_path)
    assert time.process_time() - start < 2


def test_many_tensors_are_counted(tmp_path: Path) -> None:
    header = {f"model.layers.{index}.mlp.experts.{index}.gate_proj.weight": ENTRY for index in range(50_000)}
    with_header(tmp_path / "model.safetensors", json.dumps({"__metadata__": {"format": "pt"}, **header}).encode())
    assert weights_in(tmp_path) == StoredWeights(50_000, 300_000)


def saved(path: Path, values: int) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({"x": torch.zeros(values)}, path)


def test_the_files_are_those_that_transformers_reads(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", 3)
    saved(tmp_path / "sub" / "b.safetensors", 5)
    assert weights_in(tmp_path) == StoredWeights(0, 0)
    index: Any = {"weight_map": {"x": "a.safetensors", "y": "sub/b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_in(tmp_path) == StoredWeights(2, 8)
    saved(tmp_path / "model.safetensors", 7)
    assert weights_in(tmp_path) == StoredWeights(1, 7)
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "a.safetensors"}))
    assert weights_in(tmp_path) == StoredWeights(1, 3)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../b", "", 5, ["x"]])
def test_an_index_does_not_lead_out(name: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(WeightsDamage, match=r"leads out|no index"):
        weights_in(tmp_path)


def test_files_beside_a_model_do_not_matter(tmp_path: Path) -> None:
    save_pretrained(tmp_path, tiny_llama())
    (tmp_path / "x.safetensors").symlink_to("nowhere")
    (tmp_path / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "folder.safetensors").mkdir()
    load_causal_lm(PretrainedSource(str(tmp_path)))
    with_header(tmp_path / "model.safetensors", b"[" * 1_000)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_causal_lm(PretrainedSource(str(tmp_path)))
