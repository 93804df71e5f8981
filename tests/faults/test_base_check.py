"""An adapter went onto a base that already had it merged in, or that was noisy by a hundredth, without a word."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, merge_adapter, quantize_model, save_adapter
from pera_lightning.checkpoint.manifest.base_record import LayerRecord, dense_record, record_difference
from pera_lightning.checkpoint.manifest.manifest import manifest_of
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tied_llama, tiny_gpt2, tiny_llama

WIDE = {"hidden_size": 128, "intermediate_size": 192}
"""Rows of whole blocks, which every CPU unpacks rightly."""


def base(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return tiny_llama(**WIDE).to(dtype)


def trained(model: nn.Module, folder: Path, scale: float = 0.05) -> Path:
    torch.manual_seed(1)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, scale)
    return save_adapter(model, folder)


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]


def noisy(share: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        torch.manual_seed(2)
        for weight in weights(model):
            weight.data *= 1 + share * torch.randn_like(weight)

    return change


def exchange(model: nn.Module) -> None:
    first, second = (layer.mlp.up_proj.weight.data for layer in model.model.layers)
    swapped = first.clone()
    first.copy_(second)
    second.copy_(swapped)


def permute(model: nn.Module) -> None:
    model.model.layers[1].mlp.down_proj.weight.data = model.model.layers[1].mlp.down_proj.weight.data.flip(1)


def tune(model: nn.Module) -> None:
    """A few steps at the learning rate of a whole model's training."""
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for _ in range(2):
        ids = torch.randint(3, 64, (4, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def redraw(model: nn.Module) -> None:
    torch.manual_seed(4)
    model.model.layers[1].self_attn.k_proj.reset_parameters()


CHANGES = {
    "1 %": noisy(0.01),
    "0.1 %": noisy(0.001),
    "exchanged": exchange,
    "permuted": permute,
    "tuned": tune,
    "redrawn": redraw,
}


def merged(model: nn.Module, folder: Path) -> None:
    load_adapter(model, folder)
    merge_adapter(model)


def refused(model: nn.Module, folder: Path, **options: Any) -> str:
    with pytest.raises(AdapterFileError, match="another base than this one") as caught:
        load_adapter(model, folder, **options)
    assert not list(adapted_layers(model))
    return str(caught.value)


FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_refuses_another_base_in_the_same_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = trained(base(dtype), tmp_path)
    for change in CHANGES.values():
        other = base()
        change(other)
        refused(other.to(dtype), folder)
    load_adapter(base(dtype), folder)


@pytest.mark.parametrize("scale", [0.05, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refuses_a_base_that_has_the_adapter_already(tmp_path: Path, scale: float, dtype: torch.dtype) -> None:
    folder = trained(base(dtype), tmp_path, scale)
    model = base(dtype)
    merged(model, folder)
    message = refused(model, folder)
    assert "compared layers have other weights, e.g. 'model.layers." in message


@pytest.mark.parametrize("there", FLOATS[:3])
@pytest.mark.parametrize("here", FLOATS)
def test_takes_the_same_base_in_any_dtype_and_no_other(tmp_path: Path, there: torch.dtype, here: torch.dtype) -> None:
    folder = trained(base(there), tmp_path)
    load_adapter(base(here), folder)
    load_adapter(base(there).to(here), folder)
    if there != here:
        # By way of a third one, as files are written.
        load_adapter(base(torch.float16).to(here), folder)
    for change in ("0.1 %", "permuted"):
        other = base()
        CHANGES[change](other)
        refused(other.to(here), folder)
    other = base()
    merged(other, folder)
    refused(other.to(here), folder)


@pytest.mark.parametrize(
    ("kind", "source"),
    [("nf4", torch.float32), ("nf4-dq", torch.bfloat16), ("fp4", torch.bfloat16), ("int8", torch.float32)],
)
def test_quantised_in_the_same_way(tmp_path: Path, kind: Any, source: torch.dtype) -> None:
    def quantised(model: nn.Module) -> nn.Module:
        quantize_model(model.to(source), kind)
        return model

    folder = trained(quantised(base()), tmp_path)
    load_adapter(quantised(base()), folder)
    for change in ("1 %", "0.1 %", "exchanged"):
        other = base()
        CHANGES[change](other)
        refused(quantised(other), folder)
    other = quantised(base())
    load_adapter(other, folder)
    merge_adapter(other, into="requantized")
    refused(other, folder)


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("float32", "nf4"),
        ("float32", "int8"),
        ("bfloat16", "nf4-dq"),
        ("nf4", "float32"),
        ("nf4-dq", "bfloat16"),
        ("nf4-dq", "nf4"),
        ("nf4", "int8"),
        ("int8", "float32"),
        ("int8", "fp4"),
        ("fp4", "nf4"),
    ],
)
def test_stored_in_another_way(tmp_path: Path, there: str, here: str) -> None:
    def stored(model: nn.Module, way: Any) -> nn.Module:
        if "float" in way:
            return model.to(getattr(torch, way))
        quantize_model(model, way)
        return model

    folder = trained(stored(base(), there), tmp_path)
    options = {"allow_other_quantization": True}
    load_adapter(stored(base(), here), folder, **options)
    # From a rounded copy.
    load_adapter(stored(base(torch.bfloat16), here), folder, **options)
    for change in ("exchanged", "redrawn"):
        other = base()
        CHANGES[change](other)
        assert "compared layers have other weights" in refused(stored(other, here), folder, **options)


def test_noise_is_found_beside_a_quantised_base(tmp_path: Path) -> None:
    model = base()
    quantize_model(model, "nf4")
    folder = trained(model, tmp_path)
    other = base()
    CHANGES["1 %"](other)
    # A twentieth of what four bits are off by; seen where a weight was next to the border of its code.
    refused(other, folder, allow_other_quantization=True)


@pytest.mark.parametrize("make", [tied_llama, tiny_gpt2])
def test_other_models(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    def drawn() -> nn.Module:
        torch.manual_seed(0)
        return make()

    folder = trained(drawn(), tmp_path)
    load_adapter(drawn(), folder)
    load_adapter(drawn().half(), folder)
    other = drawn()
    merged(other, folder)
    refused(other, folder)


def test_half_precision_files_of_a_bfloat16_model_are_the_same_model(tmp_path: Path) -> None:
    """Where the weights are tiny, float16 has fewer bits: what F16 files of GGUF do to a bfloat16 model."""

    def tiny() -> nn.Module:
        model = base()
        for weight in weights(model):
            weight.data[::2] *= 2.0**-12
        return model.bfloat16()

    folder = trained(tiny(), tmp_path)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        load_adapter(tiny().half().to(dtype), folder)
    other = tiny()
    CHANGES["0.1 %"](other)
    refused(other.half().float(), folder)


def test_every_layer_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(200)))
    inject_adapter(model, PeraConfig(2, target_modules=[str(index) for index in range(200)]))
    stored = manifest_of(model).base_record
    assert len(stored) == 200
    assert sum(map(len, stored.values())) < 200 * 300
    model[137].base_layer.weight.data[3, 5] += 1e-6
    difference = record_difference(stored, manifest_of(model).base_record)
    assert difference is not None
    assert difference.startswith("1 of 200 compared layers have other weights, e.g. '137'")


def test_a_gguf_base_that_was_unpacked_is_no_other_than_the_dense_one() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    blocks = weight.view(16, 8, 32)
    scale = (blocks.abs().amax(2, keepdim=True) / 8).half().float()
    unpacked = ((blocks / scale).round().clamp(-8, 7) * scale).view(16, 256)
    dense, other = dense_record(weight, 64), dense_record(weight.flip(0), 64)
    packed = dense_record(unpacked, 64, gguf=True)
    assert record_difference({"a": dense.encode()}, {"a": packed.encode()}) is None
    assert record_difference({"a": packed.encode()}, {"a": dense.encode()}) is None
    assert record_difference({"a": packed.encode()}, {"a": other.encode()}) is not None
    # Two that were unpacked are compared as they are.
    again = dense_record(unpacked * 1.001, 64, gguf=True)
    assert record_difference({"a": packed.encode()}, {"a": packed.encode()}) is None
    assert record_difference({"a": packed.encode()}, {"a": again.encode()}) is not None


def test_adapters_with_the_old_record_are_checked_as_before(tmp_path: Path) -> None:
    folder = trained(base(), tmp_path)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    assert values.pop("base_record")
    path.write_text(json.dumps(values))
    noisy_base = base()
    CHANGES["1 %"](noisy_base)
    load_adapter(noisy_base, folder)
    torch.manual_seed(9)
    refused(tiny_llama(**WIDE), folder)


@pytest.mark.parametrize("text", ["", "dense;float7;ab;;", "dense;float32;ab;1 zz;", "dense;float32;ab;1"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    folder = trained(base(), tmp_path)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    values["base_record"] = {next(iter(values["layers"])): text}
    path.write_text(json.dumps(values))
    with pytest.raises(AdapterFileError, match="incomplete or damaged"):
        load_adapter(base(), folder)


def test_a_record_survives_its_text() -> None:
    record = dense_record(torch.randn(3, 40), 16)
    assert LayerRecord.decode(record.encode()) == record
    assert copy.copy(record).values == tuple(torch.tensor(record.values).tolist())


@pytest.mark.parametrize("way", ["nf4", "nf4-dq", "fp4"])
@pytest.mark.parametrize(("there", "here"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_the_same_four_bits_of_another_source(way: Any, there: torch.dtype, here: torch.dtype, tmp_path: Path) -> None:
    """Rounding the source moves one code in two hundred, noise of 3 % of the weights' spread one in six."""

    def made(dtype: torch.dtype, noise: float = 0.0) -> nn.Module:
        model = base()
        torch.manual_seed(3)
        for weight in weights(model):
            weight.data += noise * weight.std() * torch.randn_like(weight)
        model.to(dtype)
        quantize_model(model, way)
        return model

    folder = trained(made(there), tmp_path)
    load_adapter(made(here), folder)
    assert "compared weights have other quantised values" in refused(made(here, 0.03), folder)
