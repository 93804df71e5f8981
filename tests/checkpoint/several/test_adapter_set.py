from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    adapter_disabled,
    adapter_state_dict,
    inject_adapter,
    load_adapter,
    merge_adapter,
    remove_adapter,
    save_adapter,
)
from pera_lightning.checkpoint import manifest_of
from pera_lightning.errors import AdapterFileError
from tests.support.several_adapters import CONFIGS, IDS, loaded, network, same_state


def storages() -> set[int]:
    """Every piece of memory that a tensor of this process holds."""
    gc.collect()
    # By type: isinstance would ask deprecated objects of torch for their class, which warns.
    # Not the subclasses: what compilers of earlier tests traced with has no memory.
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    found = set()
    for tensor in tensors:
        # Nor has what they wrapped to find out about mutations.
        if tensor.device.type == "cpu" and not torch._is_functional_tensor(tensor):
            found.add(tensor.untyped_storage().data_ptr())
    return found


def test_names_and_active(adapters: AdapterSet) -> None:
    assert adapters.names == tuple(CONFIGS)
    assert adapters.active is None
    adapters.switch("music")
    assert adapters.active == "music"
    assert repr(adapters) == "AdapterSet(names=('weather', 'music', 'lora'), active='music')"


def test_switching_equals_loading_alone(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    assert same_state(adapters.model, network())
    for name in ("weather", "music", "lora", "music", None, "lora", "weather", None, "weather"):
        adapters.switch(name)
        alone = network() if name is None else loaded(folders[name])
        assert same_state(adapters.model, alone)
        assert adapters.model.first is adapters.model.second


def test_everything_works_after_a_switch(adapters: AdapterSet, folders: dict[str, Path], tmp_path: Path) -> None:
    adapters.switch("weather")
    adapters.switch("music")
    model = adapters.model
    save_adapter(model, tmp_path)
    written, before = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, folders["music"]))
    assert written.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in written.items())
    assert manifest_of(model).config == CONFIGS["music"]
    expected = model(IDS)
    with adapter_disabled(model):
        assert torch.equal(model(IDS), network()(IDS))
    assert torch.equal(model(IDS), expected)
    merged = merge_adapter(copy.deepcopy(model))
    torch.testing.assert_close(merged(IDS), expected, rtol=1e-12, atol=1e-12)
    assert same_state(remove_adapter(model), network())


def test_training_one_leaves_the_others(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    adapters.switch("weather")
    adapters.model.train()
    optimizer = torch.optim.SGD((p for p in adapters.model.parameters() if p.requires_grad), lr=0.1)
    adapters.model(IDS).square().sum().backward()
    optimizer.step()
    adapters.model.eval()
    trained = adapters.model(IDS)
    with adapters.using("music"):
        optimizer.zero_grad()
        assert same_state(adapters.model, loaded(folders["music"]))
        with adapters.using(None):
            assert same_state(adapters.model, network())
    assert adapters.active == "weather"
    assert torch.equal(adapters.model(IDS), trained)
    assert not torch.equal(trained, loaded(folders["weather"])(IDS))


def test_using_switches_back_after_an_exception(adapters: AdapterSet) -> None:
    adapters.switch("lora")

    def fail() -> None:
        with adapters.using("weather") as model:
            assert adapters.active == "weather"
            assert model is adapters.model
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert adapters.active == "lora"


class Operations(TorchDispatchMode):
    """Records what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def test_a_switch_computes_and_allocates_nothing(adapters: AdapterSet) -> None:
    before = storages()
    memory: dict[str | None, list[int]] = {}
    with Operations() as operations:
        for name in (*CONFIGS, None, *CONFIGS, None):
            adapters.switch(name)
            present = [parameter.data_ptr() for parameter in adapters.model.parameters()]
            assert memory.setdefault(name, present) == present
    assert operations.names <= {"aten.detach"}
    assert storages() == before


def test_base_weights_exist_once(folders: dict[str, Path]) -> None:
    model = network()
    adapters = AdapterSet(model)
    weights = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    before = storages()
    adapters.load("weather", folders["weather"])
    adapters.load("music", folders["music"])
    # One new storage for each tensor of the adapters; tensors of the base have theirs.
    tensors = sum(len(load_file(folders[name] / "adapter_model.safetensors")) for name in ("weather", "music"))
    assert len(storages() - before) <= tensors
    adapters.switch("weather")
    assert model.first.base_layer.weight.data_ptr() == weights["first.weight"]
    assert model.embed.base_layer.weight.data_ptr() == weights["embed.weight"]
    adapters.remove("weather")
    adapters.remove("music")
    assert len(storages()) == len(before)


def test_expanded_factors_are_not_kept_while_an_adapter_is_out(adapters: AdapterSet) -> None:
    adapters.switch("music")
    with torch.no_grad():
        adapters.model(IDS)
    layer = adapters.model.first
    assert layer._operand_cache._held is not None
    adapters.switch("weather")
    assert layer._operand_cache._held is None


@pytest.mark.parametrize("active", [None, "music", "weather"])
def test_replacing_values_in_place(adapters: AdapterSet, folders: dict[str, Path], tmp_path: Path, active: Any) -> None:
    other = loaded(folders["weather"])
    with torch.no_grad():
        for value in adapter_state_dict(other).values():
            value.mul_(1.5)
    save_adapter(other, tmp_path)
    with adapters.using("weather"):
        adapters.model(IDS)
        before = {key: value.data_ptr() for key, value in adapter_state_dict(adapters.model).items()}
    adapters.switch(active)
    adapters.replace("weather", tmp_path)
    assert adapters.active == active
    adapters.switch("weather")
    assert same_state(adapters.model, loaded(tmp_path))
    assert {key: value.data_ptr() for key, value in adapter_state_dict(adapters.model).items()} == before
    expected = adapters.model(IDS)
    with pytest.raises(AdapterFileError, match=r"remove\(name\)"):
        adapters.replace("weather", folders["music"])
    assert torch.equal(adapters.model(IDS), expected)


def test_loading_in_place_keeps_the_memory(folders: dict[str, Path]) -> None:
    model = loaded(folders["weather"])
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    load_adapter(model, folders["weather"])
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before


def test_layers_follow_what_happens_to_the_base(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    adapters.switch("weather")
    adapters.model.train().float()
    adapters.switch("music")
    alone = loaded(folders["music"]).train().float()
    assert same_state(adapters.model, alone)
    adapters.model.eval().to(torch.bfloat16)
    adapters.switch("weather")
    model = adapters.model
    assert not any(module.training for module in model.modules())
    # As a model in half precision gets them, and those it converted itself in between stay as they are.
    assert model.first.pera_A.dtype == torch.float32
    assert model.out.weight.dtype == torch.bfloat16
    assert model(IDS).dtype == torch.bfloat16
    adapters.switch("music")
    assert model.first.pera_A.dtype == torch.bfloat16


def test_an_exchanged_base_is_found(adapters: AdapterSet) -> None:
    """Whoever puts another layer in the base's place puts it there for all adapters."""
    layer = nn.Linear(6, 5).double()
    adapters.model.middle = layer
    with adapters.using("lora"):
        assert adapters.model.middle.base_layer is layer
    assert adapters.model.middle is layer


def test_taking_over_an_adapted_model(folders: dict[str, Path]) -> None:
    model = loaded(folders["weather"])
    adapters = AdapterSet(model, name="own")
    assert adapters.active == "own"
    assert same_state(model, loaded(folders["weather"]))
    adapters.load("music", folders["music"])
    adapters.switch("music")
    assert same_state(model, loaded(folders["music"]))
    adapters.remove("music")
    assert adapters.active is None
    assert adapters.names == ("own",)
    assert same_state(model, network())
    adapters.switch("own")
    assert same_state(model, loaded(folders["weather"]))


def test_loading_in_inference_mode(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(network())
    with torch.inference_mode():
        for name in ("weather", "music"):
            adapters.load(name, folders[name])
        adapters.mix("both", {"weather": 0.5, "music": 0.5})
        for name in ("music", "both", "weather"):
            adapters.switch(name)
            adapters.model(IDS)
    adapters.model(IDS).sum().backward()
    assert adapters.model.first.pera_B.grad is not None


def test_tied_modules_trained_whole(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8, bias=False))
        model[2].weight = model[0].weight
        return model

    model, ids = tied(), torch.arange(8)
    inject_adapter(model, PeraConfig(2, target_modules=["1"], modules_to_save=["0", "2"]))
    with torch.no_grad():
        model[0].weight.add_(1)
    expected, plain = model(ids), tied()(ids)
    for _ in range(2):
        with adapter_disabled(model):
            assert torch.equal(model(ids), plain)
        assert torch.equal(model(ids), expected)
    save_adapter(model, tmp_path)
    adapters = AdapterSet(tied())
    adapters.load("one", tmp_path)
    adapters.mix("half", {"one": 0.5})
    for _ in range(2):
        with adapters.using("one") as model:
            assert torch.equal(model(ids), expected)
        with adapters.using("half") as model:
            torch.testing.assert_close(model[2].weight, tied()[2].weight + 0.5)
        assert torch.equal(adapters.model(ids), plain)
