from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ExportError
from pera_lightning.export.gguf.gguf_writing import write_merged_gguf
from pera_lightning.export.lora.plain_lora import PeraTensors, PlainLora, plain_lora
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.tiny_gguf import tiny_qwen2, write_base_gguf


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    inject_adapter(model, PeraConfig(**{"rank": 2, **options}))
    randomise_adapter(model)
    return model


def lora_of(model: nn.Module) -> PlainLora:
    return plain_lora(PeraTensors.of(model))


def loaded(file: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return model(token_ids()).logits


def contents(file: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(file).fields.values()
    return {field.name: field.contents() for field in fields if not field.name.startswith("GGUF.")}


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_transformers_loads_the_adapted_model(tmp_path: Path, make: Any, tied: bool) -> None:
    model = make(tie_word_embeddings=tied)
    write_base_gguf(model, tmp_path / "base.gguf")
    before = logits(model)
    adapted(model, target_modules="all-linear" if tied else ["q_proj", "k_proj", "down_proj", "lm_head"])
    write_merged_gguf(lora_of(model), tmp_path / "base.gguf", tmp_path / "new" / "merged.gguf", torch.float32)
    torch.testing.assert_close(logits(loaded(tmp_path / "new" / "merged.gguf")), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - before).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_quantised_base(tmp_path: Path, dtype: torch.dtype | None) -> None:
    base, merged = tmp_path / "base.gguf", tmp_path / "merged.gguf"
    write_base_gguf(tiny_llama(hidden_size=64, intermediate_size=96), base, "Q8_0")
    model = adapted(loaded(base), target_modules=["q_proj", "up_proj"])
    options = {} if dtype is None else {"dtype": dtype}
    write_merged_gguf(lora_of(model), base, merged, **options)
    relative = 2**-11 if dtype is None else 2**-8
    torch.testing.assert_close(logits(loaded(merged)), logits(model), atol=20 * relative, rtol=0)
    was, found = tensors(base), tensors(merged)
    assert list(was) == list(found)
    changed = {name for name in was if not np.array_equal(was[name].data, found[name].data)}
    assert changed == {f"blk.{block}.{kind}.weight" for block in range(2) for kind in ("attn_q", "ffn_up")}
    assert {found[name].tensor_type.name for name in changed} == {"F16" if dtype is None else "BF16"}
    assert all(found[name].tensor_type == was[name].tensor_type for name in set(was) - changed)


def test_metadata_is_the_bases(tmp_path: Path) -> None:
    base, merged = tmp_path / "base.gguf", tmp_path / "merged.gguf"
    model = tiny_llama()
    write_base_gguf(model, base, alignment=256)
    write_merged_gguf(lora_of(adapted(model)), base, merged)
    wanted = contents(base)
    assert wanted.pop("general.file_type") == 0
    assert wanted["general.languages"] == ["en", "de"]
    assert wanted["general.alignment"] == 256
    assert contents(merged) == {**wanted, "pera_lightning.form": "merged model"}
    # Where the reader looks for them with that alignment.
    for name in ("token_embd.weight", "blk.1.attn_norm.weight", "output.weight"):
        assert np.array_equal(tensors(merged)[name].data, tensors(base)[name].data)


def test_empty_list_in_the_metadata(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "full.gguf")
    # The package reads empty lists, but writes none.
    entries = struct.pack("<Q2sQ2s", 2, b"en", 2, b"de")
    full = b"general.languages" + struct.pack("<IIQ", 9, 8, 2) + entries
    content = (tmp_path / "full.gguf").read_bytes()
    assert content.count(full) == 1
    # A longer name makes up for the bytes that are missing.
    empty = struct.pack("<Q37s", 37, b"general.languages_none_______________") + struct.pack("<IIQ", 9, 8, 0)
    (tmp_path / "base.gguf").write_bytes(content.replace(struct.pack("<Q", 17) + full, empty))
    write_merged_gguf(lora_of(adapted(model)), tmp_path / "base.gguf", tmp_path / "merged.gguf")
    assert not any(key.startswith("general.languages") for key in contents(tmp_path / "merged.gguf"))


def test_other_base(tmp_path: Path) -> None:
    model = adapted(tiny_llama(intermediate_size=64))
    write_base_gguf(tiny_llama(), tmp_path / "base.gguf")
    with pytest.raises(ExportError, match=r"not the adapter's base[\s\S]*\(48, 32\)[\s\S]*\(64, 32\)"):
        write_merged_gguf(lora_of(model), tmp_path / "base.gguf", tmp_path / "new" / "merged.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["base.gguf"]


def test_adapter_file_as_base(tmp_path: Path) -> None:
    from pera_lightning.export.gguf.gguf_adapter import write_gguf_adapter

    model = adapted(tiny_llama())
    write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)
    with pytest.raises(ExportError, match=r"is not known here[\s\S]*None blocks"):
        write_merged_gguf(lora_of(model), tmp_path / "a.gguf", tmp_path / "merged.gguf")


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=r"'mamba'[\s\S]*convert_hf_to_gguf\.py"):
        write_merged_gguf(lora_of(adapted(tiny_llama())), tmp_path / "base.gguf", tmp_path / "merged.gguf")


@pytest.mark.parametrize("content", [None, b"something else"])
def test_base_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(ExportError, match="cannot be read"):
        write_merged_gguf(lora_of(adapted(tiny_llama())), tmp_path / "base.gguf", tmp_path / "merged.gguf")


def test_truncated_base(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "base.gguf")
    content = (tmp_path / "base.gguf").read_bytes()
    (tmp_path / "base.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match="cannot be read"):
        write_merged_gguf(lora_of(adapted(model)), tmp_path / "base.gguf", tmp_path / "merged.gguf")


def test_big_endian_base(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "base.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(ExportError, match="big-endian"):
        write_merged_gguf(lora_of(adapted(model)), tmp_path / "base.gguf", tmp_path / "merged.gguf")


def test_in_place_of_the_base(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "base.gguf")
    content = (tmp_path / "base.gguf").read_bytes()
    with pytest.raises(ExportError, match="take the place of its base"):
        write_merged_gguf(lora_of(adapted(model)), tmp_path / "base.gguf", tmp_path / "base.gguf")
    assert (tmp_path / "base.gguf").read_bytes() == content


def test_weights_beyond_the_dtype(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "base.gguf")
    lora = lora_of(adapted(model))
    lora.factors["model.layers.1.mlp.down_proj"].up.fill_(1e6)
    (tmp_path / "merged.gguf").write_bytes(b"there before")
    with pytest.raises(ExportError, match=r"'blk\.1\.ffn_down\.weight' beyond torch\.float16"):
        write_merged_gguf(lora, tmp_path / "base.gguf", tmp_path / "merged.gguf", overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base.gguf", "merged.gguf"]
    assert (tmp_path / "merged.gguf").read_bytes() == b"there before"


def test_what_a_lora_cannot_hold(tmp_path: Path) -> None:
    model = tiny_llama()
    write_base_gguf(model, tmp_path / "base.gguf")
    lora = lora_of(adapted(model, modules_to_save=["norm"]))
    with pytest.raises(ExportError, match="modules saved whole"):
        write_merged_gguf(lora, tmp_path / "base.gguf", tmp_path / "merged.gguf")
