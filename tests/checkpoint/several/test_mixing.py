"""Mixtures of adapters against the base plus the weighted changes of all parameters, computed densely in float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from pera_lightning.checkpoint.several import mixing
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter
from tests.support.several_adapters import (
    CONFIGS,
    IDS,
    dense_change,
    dense_mixture,
    dense_parameters,
    loaded,
    network,
)

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
MIXTURES = {
    "two": {"weather": 0.7, "music": 0.3},
    "all": {"lora": 0.5, "weather": 1.5, "music": -0.25},
    "one": {"music": 1.0},
    "plain lora": {"lora": 2},
}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("active", [None, "weather"])
def test_the_sum_is_exact(adapters: AdapterSet, folders: dict[str, Path], mixture: str, active: str | None) -> None:
    weights = MIXTURES[mixture]
    expected = dense_mixture(folders, weights)
    adapters.switch(active)
    before = adapters.model(IDS)
    report = adapters.mix("mixture", weights)
    assert adapters.active == active
    assert torch.equal(adapters.model(IDS), before)
    adapters.switch("mixture")
    layers = dict(adapted_layers(adapters.model))
    assert set(report.adapted) == set(layers)
    torch.testing.assert_close(adapters.model(IDS), expected(IDS), **CLOSE)
    torch.testing.assert_close(dense_parameters(adapters.model), expected.state_dict(), **CLOSE)
    for name, layer in layers.items():
        parts = [dict(adapted_layers(loaded(folders[part]))).get(name) for part in weights]
        ranks = [expanded_rank(part.rank, part.config.order, part.config.terms) for part in parts if part is not None]
        assert (layer.rank, layer.config.order, layer.scaling) == (sum(ranks), 1, 1.0)
        assert layer.config.dropout == 0.0
    with adapter_disabled(adapters.model):
        assert torch.equal(adapters.model(IDS), network()(IDS))
    for part in weights:
        adapters.switch(part)
        assert torch.equal(adapters.model(IDS), loaded(folders[part])(IDS))


def test_factors_do_not_add(folders: dict[str, Path]) -> None:
    """Why the mixture is made of expanded factors: the sum of A and B gives another dW."""
    model = loaded(folders["weather"])
    single = dense_change(model.first)
    with torch.no_grad():
        model.first.pera_A.mul_(math.sqrt(2))
        model.first.pera_B.mul_(math.sqrt(2))
    assert not torch.allclose(dense_change(model.first), 2 * single, rtol=0.01)


def test_a_mixture_is_an_adapter_like_others(adapters: AdapterSet, folders: dict[str, Path], tmp_path: Path) -> None:
    adapters.mix("mixture", MIXTURES["all"])
    adapters.switch("mixture")
    expected = adapters.model(IDS)
    save_adapter(adapters.model, tmp_path)
    alone = loaded(tmp_path)
    assert torch.equal(alone(IDS), expected)
    torch.testing.assert_close(merge_adapter(alone)(IDS), expected, **CLOSE)
    merged = merge_adapter(copy.deepcopy(adapters.model))
    torch.testing.assert_close(merged(IDS), dense_mixture(folders, MIXTURES["all"])(IDS), **CLOSE)
    adapters.load("again", tmp_path)
    adapters.switch("again")
    assert torch.equal(adapters.model(IDS), expected)


def test_mixtures_of_mixtures(adapters: AdapterSet, folders: dict[str, Path]) -> None:
    adapters.mix("inner", {"weather": 0.5, "lora": 1.0})
    adapters.mix("outer", {"inner": 2.0, "music": 1.0})
    adapters.remove("inner")
    adapters.remove("weather")
    adapters.switch("outer")
    expected = dense_mixture(folders, {"weather": 1.0, "lora": 2.0, "music": 1.0})
    torch.testing.assert_close(adapters.model(IDS), expected(IDS), **CLOSE)


def test_mixtures_train(adapters: AdapterSet) -> None:
    adapters.mix("mixture", MIXTURES["two"])
    adapters.switch("mixture")
    adapters.model.train()(IDS).sum().backward()
    trained = {name for name, value in adapters.model.named_parameters() if value.grad is not None}
    assert {"first.pera_A", "middle.pera_B", "embed.pera_A", "out.weight", "norm.weight"} <= trained
    assert "first.base_layer.weight" not in trained


@pytest.mark.parametrize("weights", [{"music": 0}, {"music": math.nan}, {"music": "half"}, {"music": True}, {}])
def test_weights_that_are_none(adapters: AdapterSet, weights: dict[str, float]) -> None:
    before = adapters.model(IDS)
    with pytest.raises(ConfigError, match=r"(?s)needs weights.*fix: .*give each a number"):
        adapters.mix("mixture", weights)
    assert adapters.names == tuple(CONFIGS)
    assert torch.equal(adapters.model(IDS), before)


def saved(folder: Path, model: nn.Module, **options: object) -> Path:
    inject_adapter(model, PeraConfig(2, **options))
    randomise_adapter(model)
    return save_adapter(model, folder)


def test_adapted_by_one_and_trained_whole_by_another(adapters: AdapterSet, tmp_path: Path) -> None:
    adapters.load("whole", saved(tmp_path, network(), target_modules=["out"], modules_to_save=["middle"]))
    adapters.switch("weather")
    before = adapters.model(IDS)
    with pytest.raises(InjectionError, match=r"(?s)trains whole.*'middle'"):
        adapters.mix("mixture", {"lora": 1.0, "whole": 1.0})
    assert "mixture" not in adapters.names
    assert torch.equal(adapters.model(IDS), before)


def test_running_statistics_do_not_mix(tmp_path: Path) -> None:
    def base() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    x = torch.randn(6, 4)
    saved(tmp_path / "still", base(), modules_to_save=["1"])
    model = base()
    inject_adapter(model, PeraConfig(2, modules_to_save=["1"]))
    model.train()(x)
    save_adapter(model, tmp_path / "moved")
    adapters = AdapterSet(base())
    for name in ("still", "moved"):
        adapters.load(name, tmp_path / name)
    adapters.mix("mixture", {"still": 0.5})
    with pytest.raises(InjectionError, match=r"(?s)Buffers.*running_mean"):
        adapters.mix("other", {"still": 0.5, "moved": 0.5})
    assert adapters.names == ("still", "moved", "mixture")
    adapters.switch("moved")
    assert torch.equal(adapters.model[1].running_mean, model[1].running_mean)


def test_in_float16(tmp_path: Path) -> None:
    """The products of small entries, which the expanded factors consist of, would be lost if stored as they come."""

    def base() -> nn.Module:
        model = nn.Sequential(nn.Linear(1024, 16, bias=False)).half().eval()
        return model.requires_grad_(False).apply(lambda module: isinstance(module, nn.Linear) and module.weight.zero_())

    torch.manual_seed(1)
    model, x = base(), torch.randn(64, 1024).half()
    inject_adapter(model, PeraConfig(4, 3, coefficient_scale="auto", target_modules=["0"]))
    with torch.no_grad():
        # Of the size that products of the third degree take part in the sum.
        model[0].pera_B.normal_()
        model[0].pera_h.normal_()
    save_adapter(model, tmp_path)
    adapters = AdapterSet(base())
    adapters.load("single", tmp_path)
    adapters.mix("mixture", {"single": 1.0})
    adapters.switch("mixture")
    exact = x.double() @ dense_change(model[0]).T
    error = (adapters.model(x).double() - exact).norm() / exact.norm()
    assert error < 1e-3


def test_a_model_that_lost_a_layer(adapters: AdapterSet) -> None:
    adapters.switch("music")
    layers = list(adapted_layers(adapters.model))
    del adapters.model.middle
    for call in (lambda: adapters.mix("mixture", {"lora": 1.0}), lambda: adapters.switch("weather")):
        with pytest.raises(TargetError, match="middle"):
            call()
        assert adapters.active == "music"
        assert adapters.names == tuple(CONFIGS)
        assert list(adapted_layers(adapters.model)) == layers


def test_a_failed_mixture_changes_nothing(adapters: AdapterSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(layer: object) -> None:
        raise MemoryError

    adapters.switch("weather")
    layers, before = list(adapted_layers(adapters.model)), adapters.model(IDS)
    monkeypatch.setattr(mixing, "scaled_factors", fail)
    with pytest.raises(MemoryError):
        adapters.mix("mixture", MIXTURES["all"])
    assert adapters.names == tuple(CONFIGS)
    assert list(adapted_layers(adapters.model)) == layers
    assert torch.equal(adapters.model(IDS), before)
    adapters.switch(None)
    assert torch.equal(adapters.model(IDS), network()(IDS))


def test_load_adapter_reads_mixtures_into_themselves(adapters: AdapterSet, tmp_path: Path) -> None:
    adapters.mix("mixture", MIXTURES["two"])
    adapters.switch("mixture")
    save_adapter(adapters.model, tmp_path)
    before = adapters.model(IDS)
    assert load_adapter(adapters.model, tmp_path) is None
    adapters.replace("mixture", tmp_path)
    assert torch.equal(adapters.model(IDS), before)
