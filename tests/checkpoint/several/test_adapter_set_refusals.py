"""What an `AdapterSet` refuses, and that nothing has changed then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    merge_adapter,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import AdapterFileError, ConfigError, InjectionError
from pera_lightning.injection import adapted_layers
from pera_lightning.injection.saved_modules import Mark, put_mark
from pera_lightning.injection.shared_memory import SharedMemory
from tests.support.several_adapters import CONFIGS, loaded, network, same_state


def test_a_failed_load_changes_nothing(adapters: AdapterSet, folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(6, 6))
    inject_adapter(other, PeraConfig(2, target_modules=["0"]))
    save_adapter(other, tmp_path / "other")
    adapters.switch("weather")
    layers = list(adapted_layers(adapters.model))
    for folder in (tmp_path / "other", tmp_path / "nothing"):
        with pytest.raises(AdapterFileError):
            adapters.load("new", folder)
        assert adapters.names == tuple(CONFIGS)
        assert list(adapted_layers(adapters.model)) == layers
        assert same_state(adapters.model, loaded(folders["weather"]))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_switch_that_fails_half_way_changes_nothing(
    adapters: AdapterSet, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    adapters.switch("music")
    done = []

    def put_mark_once(module: nn.Module, mark: Mark, memory: SharedMemory) -> None:
        done.append(module)
        if len(done) == failing:
            raise MemoryError
        put_mark(module, mark, memory)

    monkeypatch.setattr("pera_lightning.injection.detached.put_mark", put_mark_once)
    with pytest.raises(MemoryError):
        adapters.switch("weather")
    assert adapters.active == "music"
    for name in ("music", "weather", "music"):
        adapters.switch(name)
        assert same_state(adapters.model, loaded(folders[name]))
    adapters.switch(None)
    assert same_state(adapters.model, network())


UNKNOWN: dict[str, Callable[[AdapterSet], object]] = {
    "switch": lambda adapters: adapters.switch("wether"),
    "using": lambda adapters: adapters.using("wether").__enter__(),
    "remove": lambda adapters: adapters.remove("wether"),
    "replace": lambda adapters: adapters.replace("wether", "folder"),
    "compare": lambda adapters: adapters.compare("music", "wether"),
    "mix": lambda adapters: adapters.mix("new", {"music": 0.5, "wether": 0.5}),
}


@pytest.mark.parametrize("method", UNKNOWN)
def test_unknown_names(adapters: AdapterSet, method: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'wether'.*'weather', 'music', 'lora'.*near names: weather"):
        UNKNOWN[method](adapters)
    assert adapters.active is None


def test_names_that_are_taken_or_none(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    for make in (lambda: adapters.load("music", folders["music"]), lambda: adapters.mix("music", {"lora": 1.0})):
        with pytest.raises(ConfigError, match=r"(?s)already.*'music'.*'weather', 'music', 'lora'"):
            make()
    with pytest.raises(ConfigError, match="needs a name"):
        adapters.load("", folders["music"])
    with pytest.raises(ConfigError, match="under a name"):
        AdapterSet(loaded(folders["music"]))
    with pytest.raises(ConfigError, match="under a name"):
        AdapterSet(network(), name="own")


def test_merged_and_disabled_adapters_stay(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    adapters.switch("weather")
    model = adapters.model
    calls = [
        lambda: adapters.switch(None),
        lambda: adapters.switch("weather"),
        lambda: adapters.load("new", folders["music"]),
        lambda: adapters.replace("music", folders["music"]),
        lambda: adapters.mix("new", {"music": 1.0}),
        lambda: adapters.remove("weather"),
    ]
    for call in calls:
        model.middle.merge()
        with pytest.raises(InjectionError, match=r"(?s)1 merged and 0 disabled layers, e.g. 'middle'.*unmerge"):
            call()
        model.middle.unmerge()
        with adapter_disabled(model), pytest.raises(InjectionError, match="0 merged and 3 disabled"):
            call()
    assert same_state(model, loaded(folders["weather"]))


@pytest.mark.parametrize("end", [remove_adapter, merge_adapter])
def test_a_model_changed_past_the_set(adapters: AdapterSet, end: Callable[[nn.Module], nn.Module]) -> None:
    adapters.switch("weather")
    end(adapters.model)
    with pytest.raises(InjectionError, match="past the set"):
        adapters.switch("music")
    assert not list(adapted_layers(adapters.model))
    adapters = AdapterSet(adapters.model)
    inject_adapter(adapters.model, PeraConfig(2))
    with pytest.raises(InjectionError, match="past the set"):
        adapters.switch(None)


def test_an_adapter_injected_past_the_set_can_be_taken_out(adapters: AdapterSet) -> None:
    adapters.switch(None)
    inject_adapter(adapters.model, PeraConfig(2))
    with pytest.raises(InjectionError, match=r"fix: +remove_adapter\(model\) takes them out again"):
        adapters.switch("music")
    remove_adapter(adapters.model)
    adapters.switch("music")
    assert adapters.active == "music"
