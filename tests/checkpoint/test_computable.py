"""Tensors that a model cannot take or compute with: refused before anything is copied."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import _SIZE, load_file, save_file
from torch import Tensor, nn

from pera_lightning import (
    PeraConfig,
    adapter_state_dict,
    export_lora,
    inject_adapter,
    load_adapter,
    save_adapter,
)
from pera_lightning.analysis import inspect_adapter
from pera_lightning.checkpoint.adapter_folder import read_adapter
from pera_lightning.checkpoint.finite_values import largest_values, not_finite
from pera_lightning.checkpoint.state_hooks import install_state_hooks
from pera_lightning.errors import AdapterFileError, CheckpointError

OPTIONS: dict[str, Any] = {"target_modules": ["0", "2"], "modules_to_save": ["1"]}


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).to(dtype).eval()


@pytest.fixture
def trained() -> nn.Module:
    model = make_model()
    inject_adapter(model, PeraConfig(2, 3, **OPTIONS))
    for value in adapter_state_dict(model).values():
        if value.is_floating_point():
            value += 0.3 * torch.rand_like(value)
    return model


@pytest.fixture
def folder(trained: nn.Module, tmp_path: Path) -> Path:
    folder = Path(save_adapter(trained, tmp_path / "adapter"))
    # The checksums would say that the tensors were changed, which is not what is asked here.
    config = folder / "adapter_config.json"
    text = config.read_text()
    values = json.loads(text)
    config.write_text(json.dumps({key: value for key, value in values.items() if "checksum" not in key}))
    return folder


def change(folder: Path, key: str, value: Tensor) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    assert key in tensors
    save_file({**tensors, key: value.contiguous()}, path)


def stored(folder: Path, key: str) -> Tensor:
    # A copy: older versions map the file, which is written over.
    return load_file(folder / "adapter_model.safetensors")[key].clone()


def refuses(folder: Path, words: str, model: nn.Module | None = None) -> None:
    model = make_model() if model is None else model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(model, folder)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


KINDS = [torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
# Older versions of safetensors do not know it.
KINDS += [torch.complex64] if torch.complex64 in _SIZE else []


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("key", ["0.pera_A", "2.pera_h", "1.weight", "1.running_mean"])
def test_dtypes(folder: Path, key: str, dtype: torch.dtype) -> None:
    change(folder, key, stored(folder, key).to(dtype))
    refuses(folder, f"dtype {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool], ids=str)
def test_counts_keep_their_dtype(folder: Path, dtype: torch.dtype) -> None:
    assert stored(folder, "1.num_batches_tracked").dtype == torch.int64
    change(folder, "1.num_batches_tracked", torch.tensor(7).to(dtype))
    refuses(folder, "num_batches_tracked")
    change(folder, "1.num_batches_tracked", torch.tensor(7))
    model = make_model()
    load_adapter(model, folder)
    assert model[1].num_batches_tracked == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_dtypes_are_taken(folder: Path, dtype: torch.dtype) -> None:
    value = stored(folder, "0.pera_A").to(dtype)
    change(folder, "0.pera_A", value)
    model = make_model()
    load_adapter(model, folder)
    assert torch.equal(model[0].pera_A, value.float())


def test_float64_belongs_to_float64(tmp_path: Path) -> None:
    model = make_model(torch.float64)
    inject_adapter(model, PeraConfig(2, **OPTIONS))
    save_adapter(model, tmp_path)
    fresh = make_model(torch.float64)
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh[0].pera_A, model[0].pera_A)
    refuses(tmp_path, "dtype float64")


@pytest.mark.parametrize("value", [1e30, 65_520.0, -1e5])
def test_overflow_of_the_models_dtype(folder: Path, value: float) -> None:
    change(folder, "1.bias", torch.full((8,), value))
    refuses(folder, "which float16 cannot", make_model(torch.float16))


def test_what_float16_still_holds(folder: Path) -> None:
    # 65,519 is rounded to 65,504, the largest one; 65,520 is the first that is not.
    change(folder, "1.bias", torch.full((8,), 65_519.0))
    model = make_model(torch.float16)
    load_adapter(model, folder)
    assert (model[1].bias == 65_504).all()


@pytest.mark.parametrize("key", ["0.pera_A", "0.pera_B", "0.pera_h", "2.pera_B"])
@pytest.mark.parametrize("value", [1e12, 1e20, -1e30, 3e38])
def test_values_whose_products_are_infinite(folder: Path, key: str, value: float) -> None:
    changed = stored(folder, key).clone()
    changed.view(-1)[1] = value
    change(folder, key, changed)
    refuses(folder, "larger by more than")


def test_a_small_product_of_large_factors_is_fine(folder: Path) -> None:
    """What each side could do alone does not count: A and B are zero where the other one is large."""
    A, B = stored(folder, "2.pera_A"), stored(folder, "2.pera_B")
    A[0], B[:, 0], A[1], B[:, 1] = 1e6, 0, 0, 1e6
    for key, value in (("2.pera_A", A), ("2.pera_B", B)):
        change(folder, key, value)
    model = make_model()
    load_adapter(model, folder)
    assert model(torch.rand(3, 6)).isfinite().all()


@pytest.mark.parametrize(("value", "words"), [(3e38, "larger by more than"), (float("inf"), "not finite")])
def test_without_a_model_as_one_in_float32(folder: Path, tmp_path: Path, value: float, words: str) -> None:
    change(folder, "0.pera_B", torch.full_like(stored(folder, "0.pera_B"), value))
    reads = (inspect_adapter, lambda given: export_lora(given, tmp_path / "lora", to="safetensors"), read_adapter)
    for read in reads:
        with pytest.raises(AdapterFileError, match=words):
            read(folder)
    assert not (tmp_path / "lora").exists()


def test_large_values_of_modules_saved_whole(folder: Path) -> None:
    change(folder, "1.weight", torch.full((8,), 1e20))
    refuses(folder, "beyond 1e")
    model = make_model()
    with torch.no_grad():
        model[1].weight.fill_(1e20)
    load_adapter(model, folder)


def test_a_variance_below_zero(folder: Path) -> None:
    change(folder, "1.running_var", -torch.ones(8))
    refuses(folder, "variance")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("0.pera_A", torch.full((2, 6), float("nan"))),
        ("0.pera_B", torch.full((8, 2), 1e30)),
        ("0.pera_A", torch.ones(2, 6, dtype=torch.int64)),
        ("0.pera_A", torch.ones(2, 6, dtype=torch.float64)),
        ("1.running_mean", torch.full((8,), float("inf"))),
    ],
    ids=str,
)
def test_checkpoints_too(trained: nn.Module, key: str, value: Tensor) -> None:
    install_state_hooks(trained)
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(CheckpointError, match="cannot compute with"):
        trained.load_state_dict({**before, key: value})
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    trained.load_state_dict(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_largest_values(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -3.0, 2.0]).to(dtype)
    nan = torch.tensor([1.0, float("nan"), float("inf")]).to(dtype)
    tensors = {"a": values, "b": values[:0], "c": nan, "d": torch.tensor([-float("inf"), 1.0]).to(dtype)}
    found = largest_values({**tensors, "e": torch.ones(2, dtype=torch.int64), "f": values.to("meta")})
    assert (found["a"], found["b"], found["d"]) == (3.0, 0.0, float("inf"))
    assert found["c"] != found["c"]
    assert found.keys() == {"a", "b", "c", "d"}
    assert not_finite(tensors) == {"c": 2, "d": 1}
