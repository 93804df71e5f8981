from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pera_lightning import (
    PeraConfig,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
)
from pera_lightning.checkpoint import adapter_files
from pera_lightning.errors import AdapterFileError, FolderError, InjectionError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_llama, token_ids

CONFIG = PeraConfig(
    4,
    3,
    terms="cross",
    alpha=6,
    coefficient_scale="auto",
    dropout=0.1,
    target_modules=["q_proj", "down_proj"],
    rank_pattern={"down_proj": 2},
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(1)
    model = tiny_llama()
    inject_adapter(model, CONFIG)
    randomise_adapter(model)
    return model, save_adapter(model, tmp_path / "adapter", base_model="some/base")


def same_base() -> nn.Module:
    torch.manual_seed(1)
    return tiny_llama()


def outputs(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


def test_round_trip(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    fresh = same_base()
    report = load_adapter(fresh, folder)
    assert len(report.adapted) == 4
    assert torch.equal(outputs(fresh), outputs(model))
    assert next(adapted_layers(fresh))[1].config == CONFIG


class Branched(nn.Linear):
    """A linear layer with one inside."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.up = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.up(x)


@pytest.mark.parametrize("options", [{}, {"target_modules": ["0"]}, {"target_modules": ["0"], "bias": "all"}])
def test_names_that_adapters_use_too(options: dict[str, Any], tmp_path: Path) -> None:
    """An adapted layer inside another, and a user's module with the name of the layer below an adapter."""
    model = nn.Sequential(Branched(), nn.ModuleDict({"base_layer": nn.Linear(3, 3)}))
    fresh, x = copy.deepcopy(model), torch.randn(2, 3)
    report = inject_adapter(model, PeraConfig(2, **options))
    randomise_adapter(model)
    save_adapter(model, tmp_path)
    loaded = load_adapter(fresh, tmp_path)
    assert (loaded.adapted, loaded.saved) == (report.adapted, report.saved)
    assert torch.equal(fresh[0](x), model[0](x))


def test_files(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors.keys() == adapter_state_dict(model).keys()
    assert "model.layers.0.self_attn.q_proj.pera_A" in tensors
    assert all(key.rsplit(".", 1)[-1] in ("pera_A", "pera_B", "pera_h") for key in tensors)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "PERA"
    assert config["format_version"] == 1
    assert config["base_model_name_or_path"] == "some/base"
    assert PeraConfig.from_dict(config["config"]) == CONFIG
    card = (folder / "README.md").read_text()
    assert "base_model: some/base" in card
    assert "4, 3, cross" in card


def test_loading_into_the_same_adapter_changes_values_only(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    fresh = same_base()
    inject_adapter(fresh, CONFIG)
    layers = list(adapted_layers(fresh))
    assert load_adapter(fresh, folder) is None
    assert list(adapted_layers(fresh)) == layers
    assert torch.equal(outputs(fresh), outputs(model))


def test_modules_saved_whole(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = tiny_bert_classifier()
    inject_adapter(model, PeraConfig(2, modules_to_save=["classifier"]))
    with torch.no_grad():
        model.classifier.bias.fill_(3.0)
    save_adapter(model, tmp_path)
    torch.manual_seed(1)
    fresh = tiny_bert_classifier()
    assert load_adapter(fresh, tmp_path).saved == ("classifier",)
    assert torch.equal(fresh.classifier.bias, torch.full((2,), 3.0))
    remove_adapter(fresh)
    assert not fresh.classifier.bias.any()


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.0.self_attn.q_proj.pera_B")
    save_file(tensors, path)


def put_nan(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.pera_B"][0, 0] = float("nan")
    save_file(tensors, path)


DAMAGES = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "config is missing"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "weights are missing"),
    "truncated": (lambda folder: truncate(folder / "adapter_model.safetensors"), "cannot be read"),
    "pickle": (lambda folder: torch.save({}, folder / "adapter_model.safetensors"), "cannot be read"),
    "no json": (lambda folder: (folder / "adapter_config.json").write_text("{"), "no JSON"),
    "json list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no PERA adapter"),
    "lora": (lambda folder: rewrite_config(folder, peft_type="LORA"), "no PERA adapter"),
    "future": (lambda folder: rewrite_config(folder, format_version=99), "newer"),
    "bad option": (
        lambda folder: rewrite_config(folder, config=PeraConfig(2).to_dict() | {"rank": 0}),
        "rank cannot have this value",
    ),
    "empty layers": (lambda folder: rewrite_config(folder, layers={}), "incomplete or damaged"),
    "bad rank": (
        lambda folder: rewrite_config(folder, layers={"x": {"rank": 0, "alpha": None}}),
        "rank is 0",
    ),
    "no layers": (lambda folder: rewrite_config(folder, layers=None), "incomplete or damaged"),
    "missing tensor": (drop_a_tensor, "q_proj.pera_B"),
    "not finite": (put_nan, "not finite"),
}


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_change_nothing(saved: tuple[nn.Module, Path], damage: str, injected: bool) -> None:
    _, folder = saved
    harm, words = DAMAGES[damage]
    harm(folder)
    fresh = same_base()
    if injected:
        inject_adapter(fresh, CONFIG)
    modules, before = list(fresh.modules()), outputs(fresh)
    with pytest.raises(AdapterFileError, match=words) as caught:
        load_adapter(fresh, folder)
    # An error within it is in its short form.
    assert r"\n" not in str(caught.value)
    assert list(fresh.modules()) == modules
    assert torch.equal(outputs(fresh), before)
    assert any(parameter.requires_grad for parameter in fresh.parameters())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: tiny_llama(hidden_size=16), "differ in shape"),
        (lambda: tiny_llama(num_hidden_layers=1), r"layers\.1"),
        (tiny_bert_classifier, "another model"),
    ],
)
def test_adapter_of_another_base(saved: tuple[nn.Module, Path], model: Any, words: str) -> None:
    other = model()
    modules = list(other.modules())
    with pytest.raises(AdapterFileError, match=words):
        load_adapter(other, saved[1])
    assert list(other.modules()) == modules
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_what_an_adapter_of_another_module_is_loaded_into_is_said_once(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(
        AdapterFileError, match="load the adapter into the module that has this one as its 'model'"
    ) as caught:
        load_adapter(same_base().model, saved[1])
    assert "if it is" not in str(caught.value)


def test_a_merged_model_is_refused(saved: tuple[nn.Module, Path]) -> None:
    model, folder = saved
    next(adapted_layers(model))[1].merge()
    with pytest.raises(InjectionError, match="1 merged layers"):
        load_adapter(model, folder)


def test_a_file_in_place_of_the_folder(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(AdapterFileError, match="config is missing"):
        load_adapter(same_base(), saved[1] / "adapter_model.safetensors")


def test_adapter_of_another_form(saved: tuple[nn.Module, Path]) -> None:
    fresh = same_base()
    inject_adapter(fresh, PeraConfig(4, 2, target_modules=["q_proj"]))
    with pytest.raises(AdapterFileError, match="order is 3 there and 2 here"):
        load_adapter(fresh, saved[1])


def test_a_failed_save_leaves_the_earlier_files(saved: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(adapter_files, "save_file", fail)
    with pytest.raises(FolderError, match=r"(?s)cannot be written to.*disk full.*with room for \d,\d\d\d bytes"):
        save_adapter(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_without_adapter_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InjectionError, match="no adapter"):
        save_adapter(tiny_llama(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_adapter_is_small_beside_its_base(tmp_path: Path) -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj"]))
    count = sum(value.numel() for value in adapter_state_dict(model).values())
    assert count == 2 * (2 * 32 + 2 * 32 + 3)


def test_a_file_in_the_way_is_no_want_of_room(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"(?s)file, which is a file.*fix: .*name another folder$"):
        save_adapter(saved[0], tmp_path / "file")
