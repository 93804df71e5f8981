from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import AdapterFileError, ConfigError, ExportError, FolderError
from pera_lightning.export.certificate import Reference
from pera_lightning.export.gguf.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from pera_lightning.export.gguf.gguf_names import ARCHITECTURES
from pera_lightning.export.lora.lora_applied import lora_applied
from pera_lightning.export.lora.plain_lora import PeraTensors, PlainLora, plain_lora
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids

# As llama.cpp's documentation of the format has them.
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PAIRED = {"llama", "mistral", "granite", "smollm3"}


def tiny(model_type: str, **options: object) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**settings, **options})).eval()


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    inject_adapter(model, PeraConfig(**{"rank": 2, **options}))
    randomise_adapter(model)
    return model


def lora_of(model: nn.Module, **options: Any) -> PlainLora:
    return plain_lora(PeraTensors.of(model), **options)


def tensor_of(layer: str) -> str:
    """What the file calls a layer's weight."""
    if layer == "lm_head":
        return "output.weight"
    _, _, block, kind = layer.split(".", 3)
    return f"blk.{block}.{TENSORS[kind]}.weight"


def written(lora: PlainLora, path: Path, model: nn.Module) -> dict[str, Tensor]:
    write_gguf_adapter(lora, path, model.config)
    return {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def by_transformers(rows: Tensor, tensor: str, model: nn.Module) -> Tensor:
    """What transformers' loader of Llama files makes of a tensor."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    return torch.tensor(LlamaTensorProcessor(model.config.to_dict()).process(rows.numpy(), tensor).weights)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tensors(tmp_path: Path, model_type: str) -> None:
    model = adapted(tiny(model_type))
    lora = lora_of(model)
    found = written(lora, tmp_path / "a.gguf", model)
    assert len(found) == 2 * len(lora.factors) > 0
    for layer, (down, up) in lora.factors.items():
        name = tensor_of(layer)
        rows = found[f"{name}.lora_b"]
        if model_type in PAIRED:
            rows = by_transformers(rows, name, model)
        assert torch.equal(found[f"{name}.lora_a"], down), layer
        assert torch.equal(rows, up), layer


@pytest.mark.parametrize("head_dim", [8, 12])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma"])
def test_attention_of_the_file_is_the_models(tmp_path: Path, model_type: str, head_dim: int) -> None:
    # Columns of lora_b as queries and keys: turned as llama.cpp turns them, they score as in transformers.
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = adapted(tiny(model_type, head_dim=head_dim) if model_type != "qwen2" else tiny("qwen2"))
    width = 8 if model_type == "qwen2" else head_dim
    lora = lora_of(model)
    found = written(lora, tmp_path / "a.gguf", model)
    layers = [f"model.layers.1.self_attn.{kind}_proj" for kind in "qk"]
    positions = torch.arange(lora.rank)[None]
    heads = [lora.factors[layer].up.T.unflatten(1, (-1, width)).transpose(0, 1)[None] for layer in layers]
    queries, keys = apply_rotary_pos_emb(*heads, *model.model.rotary_emb(heads[0], positions))
    turn = _turn_pairs if model_type in PAIRED else _turn_halves
    rows = [found[f"{tensor_of(layer)}.lora_b"].T.unflatten(1, (-1, width)).transpose(0, 1) for layer in layers]
    scores = _scores(*(turn(value) for value in rows))
    torch.testing.assert_close(scores, _scores(queries[0], keys[0]), atol=1e-5, rtol=1e-5)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.repeat_interleave(len(queries) // len(keys), 0).transpose(1, 2)


def _angles(heads: Tensor) -> Tensor:
    width = heads.shape[-1]
    return torch.arange(heads.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)


def _turn_pairs(heads: Tensor) -> Tensor:
    """llama.cpp's rotary embedding for Llama: neighbours are turned."""
    values = torch.view_as_complex(heads.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(values * torch.polar(torch.ones(()), _angles(heads))).flatten(-2)


def _turn_halves(heads: Tensor) -> Tensor:
    """llama.cpp's rotary embedding for most others, GPT-NeoX's."""
    first, second = heads.chunk(2, -1)
    cos, sin = _angles(heads).cos(), _angles(heads).sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("llama", "llama"), ("mistral", "llama"), ("gemma3_text", "gemma3")]
)
def test_metadata(tmp_path: Path, model_type: str, architecture: str) -> None:
    model = adapted(tiny(model_type))
    lora = lora_of(model)
    write_gguf_adapter(lora, tmp_path / "new" / "a.gguf", model.config)
    fields = gguf.GGUFReader(tmp_path / "new" / "a.gguf").fields.values()
    assert {field.name: field.contents() for field in fields if not field.name.startswith("GGUF.")} == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(lora.rank),
        "pera_lightning.form": "adapter",
    }


def test_files_of_others_stay(tmp_path: Path) -> None:
    model = adapted(tiny_llama())
    path = tmp_path / "a.gguf"
    for _ in range(2):
        write_gguf_adapter(lora_of(model), path, model.config)
    ours = path.read_bytes()
    # Of another program: without our entry in the metadata.
    theirs = ours.replace(b"pera_lightning.form", b"somebody_else_.form")
    for content in (theirs, b"mine"):
        path.write_bytes(content)
        with pytest.raises(FolderError, match=r"(?s)The file is not ours.*a.gguf"):
            write_gguf_adapter(lora_of(model), path, model.config)
        assert path.read_bytes() == content
    write_gguf_adapter(lora_of(model), path, model.config, overwrite=True)
    assert path.read_bytes() == ours
    assert [found.name for found in tmp_path.iterdir()] == ["a.gguf"]


def test_head_that_is_not_tied(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj", "lm_head"])
    lora = lora_of(model)
    found = written(lora, tmp_path / "a.gguf", model)
    assert torch.equal(found["output.weight.lora_b"], lora.factors["lm_head"].up)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")], ids=str
)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_read_back(tmp_path: Path, model_type: str, dtype: torch.dtype, kind: str) -> None:
    model = adapted(tiny(model_type))
    lora = lora_of(model, dtype=dtype)
    write_gguf_adapter(lora, tmp_path / "a.gguf", model.config)
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors} == {kind}
    found = read_gguf_adapter(tmp_path / "a.gguf", model.config, lora.factors).factors
    assert found.keys() == lora.factors.keys()
    for layer, factors in lora.factors.items():
        for part, wanted in zip(found[layer], factors, strict=True):
            assert part.dtype == torch.float32
            assert torch.equal(part, wanted.float())


def test_certificate(tmp_path: Path) -> None:
    model = adapted(tiny_llama())
    lora = lora_of(model)
    write_gguf_adapter(lora, tmp_path / "a.gguf", model.config)
    reference = Reference.of(model, [token_ids()])
    with lora_applied(model, read_gguf_adapter(tmp_path / "a.gguf", model.config, lora.factors)):
        certificate = reference.compare(model, "the gguf package")
    assert certificate.max_difference < 1e-5 < 1e-2 < certificate.max_change
    assert certificate.agreement == 1.0


def test_unknown_architecture(tmp_path: Path) -> None:
    model = adapted(tiny_gpt2())
    with pytest.raises(ExportError, match=r"'gpt2'[\s\S]*--to merged[\s\S]*convert_hf_to_gguf\.py"):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)
    assert not list(tmp_path.iterdir())


def test_layer_without_a_tensor(tmp_path: Path) -> None:
    model = adapted(nn.ModuleDict({"inner": tiny_llama()}))
    with pytest.raises(ExportError, match=r"no tensor for an adapted layer[\s\S]*inner\.model\.layers\.0"):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model["inner"].config)


def test_layer_beyond_the_blocks(tmp_path: Path) -> None:
    model = adapted(tiny_llama())
    with pytest.raises(ExportError, match=r"model\.layers\.1\.self_attn\.q_proj[\s\S]*in 1 blocks of 'llama'"):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", tiny_llama(num_hidden_layers=1).config)


def test_head_that_gemma_files_do_not_have(tmp_path: Path) -> None:
    model = adapted(tiny("gemma", tie_word_embeddings=False), target_modules=["lm_head"])
    with pytest.raises(ExportError, match="no tensor for an adapted layer"):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)


@pytest.mark.parametrize(
    ("options", "tied", "what"),
    [
        ({"target_modules": ["lm_head"]}, True, "tied to the embedding"),
        ({"target_modules": ["embed_tokens"]}, False, "adapted embeddings"),
        ({"modules_to_save": ["norm"]}, False, "modules saved whole"),
    ],
)
def test_what_llama_cpp_would_leave_out(tmp_path: Path, options: Any, tied: bool, what: str) -> None:
    model = adapted(tiny_llama(tie_word_embeddings=tied), **options)
    with pytest.raises(ExportError, match=f"llama.cpp would leave out a part of this adapter[\\s\\S]*{what}"):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)
    assert not list(tmp_path.iterdir())


def test_dtype_without_a_type(tmp_path: Path) -> None:
    model = adapted(tiny_llama())
    (tmp_path / "a.gguf").write_bytes(b"there before")
    with pytest.raises(ExportError, match=r"no such dtype[\s\S]*torch\.float64"):
        write_gguf_adapter(lora_of(model, dtype=torch.float64), tmp_path / "a.gguf", model.config, overwrite=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.gguf", b"there before")]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tiny_llama())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"gguf is not installed[\s\S]*pip install \"pera-lightning\[gguf\]\""):
        write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)


def test_reading_the_file_of_another_model(tmp_path: Path) -> None:
    model = adapted(tiny_llama(), target_modules=["q_proj", "v_proj"])
    write_gguf_adapter(lora_of(model), tmp_path / "a.gguf", model.config)
    layers = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    with pytest.raises(AdapterFileError, match="2 tensors missing and 6 others"):
        read_gguf_adapter(tmp_path / "a.gguf", model.config, layers)


@pytest.mark.parametrize("content", [b"", b"something else", None])
def test_reading_no_gguf_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ExportError, match="cannot be read"):
        read_gguf_adapter(tmp_path / "a.gguf", tiny_llama().config, ["lm_head"])
