"""An adapter is not put on another base unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from pera_lightning import PeraCallback, PeraConfig, inject_adapter, load_adapter, quantize_model, save_adapter
from pera_lightning.checkpoint.manifest.base_sample import base_sample
from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.errors import AdapterFileError, CheckpointError
from pera_lightning.injection import adapted_layers
from tests.support.models import Regressor, randomise_adapter, tiny_llama


def base(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_llama()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = base()
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    return save_adapter(model, tmp_path / "adapter")


def test_refuses_another_base(folder: Path) -> None:
    model = base(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterFileError, match=r"14 of 14 compared layers have other weights"):
        load_adapter(model, folder)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not list(adapted_layers(model))


def test_loads_into_another_base_on_purpose(folder: Path) -> None:
    model = base(seed=1)
    load_adapter(model, folder, allow_other_base=True)
    assert list(adapted_layers(model))


def test_names_the_layer_that_differs(folder: Path) -> None:
    model = base()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.05)
    with pytest.raises(AdapterFileError, match=r"1 of 14 .* 'model\.layers\.1\.mlp\.up_proj', .* by 5\.0%"):
        load_adapter(model, folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_takes_the_same_base_in_another_dtype(folder: Path, dtype: torch.dtype) -> None:
    load_adapter(base().to(dtype), folder)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_takes_the_same_base_quantised(folder: Path, kind: Any) -> None:
    model = base()
    quantize_model(model, kind)
    load_adapter(model, folder, allow_other_quantization=True)


def test_refuses_another_base_quantised(folder: Path) -> None:
    model = base(seed=1)
    quantize_model(model, "nf4")
    with pytest.raises(AdapterFileError, match=r"the weights differ by 1\d\d% of their size"):
        load_adapter(model, folder, allow_other_quantization=True)


def test_refuses_another_base_below_adapters_that_are_there(folder: Path) -> None:
    model = base(seed=1)
    inject_adapter(model, PeraConfig(2))
    with pytest.raises(AdapterFileError, match="another base"):
        load_adapter(model, folder)
    assert not any(layer.pera_B.any() for _, layer in adapted_layers(model))


def test_adapters_of_earlier_versions_are_not_checked(folder: Path) -> None:
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    assert values.pop("base_sample")
    assert values.pop("base_record")
    path.write_text(json.dumps(values))
    load_adapter(base(seed=1), folder)


@pytest.mark.parametrize("sample", [["no", "numbers"], 3, None])
def test_refuses_a_damaged_sample(folder: Path, sample: Any) -> None:
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    values["base_sample"] = {next(iter(values["layers"])): sample}
    path.write_text(json.dumps(values))
    with pytest.raises(AdapterFileError, match="incomplete or damaged"):
        load_adapter(base(), folder)


def test_weights_that_are_not_here_are_left_out() -> None:
    model = base()
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "v_proj"]))
    next(layer for _, layer in adapted_layers(model)).merge()
    assert list(base_sample(model)) == ["model.layers.0.self_attn.v_proj", *list(dict(adapted_layers(model)))[2:]]
    assert base_sample(model.to("meta")) == {}


def test_weights_that_are_trained_elsewhere_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    inject_adapter(model, PeraConfig(2, target_modules=["0", "1"], modules_to_save=["2"]))
    assert list(base_sample(model)) == ["1"]


def test_a_large_model_gives_a_small_sample() -> None:
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(100)))
    inject_adapter(model, PeraConfig(2, target_modules=[str(index) for index in range(100)]))
    sample = base_sample(model)
    assert 10 <= len(sample) <= 16
    assert all(len(values) == 8 for values in sample.values())


class Redrawn(Regressor):
    """Its base is drawn anew by each process."""

    def _build(self) -> None:
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Linear(8, 2))


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_run_does_not_go_on_with_another_base(tmp_path: Path, run: str) -> None:
    def trainer() -> Trainer:
        options: dict[str, Any] = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
        return Trainer(default_root_dir=tmp_path, callbacks=[PeraCallback(2)], enable_progress_bar=False, **options)

    module, first = Redrawn(), trainer()
    first.fit(module)
    first.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(CheckpointError, match="with another base"):
        getattr(trainer(), run)(Redrawn(), ckpt_path=tmp_path / "end.ckpt")
    getattr(trainer(), run)(module, ckpt_path=tmp_path / "end.ckpt")


def test_the_manifest_keeps_the_sample(folder: Path) -> None:
    values = json.loads((folder / "adapter_config.json").read_text())
    manifest = Manifest.from_dict(values)
    assert len(manifest.base_sample) == 14
    assert values.pop("checksums")
    assert manifest.to_dict() == values
