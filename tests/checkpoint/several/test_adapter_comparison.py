"""Comparisons of adapters against dense matrices, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import AdapterSet, PeraConfig, inject_adapter, save_adapter
from pera_lightning.checkpoint import AdapterComparison, LayerComparison
from pera_lightning.checkpoint.several.adapter_comparison import Factors, compare_layers
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection import adapted_layers
from tests.support.several_adapters import dense_change, loaded


@pytest.mark.parametrize("active", [None, "weather", "music"])
@pytest.mark.parametrize("pair", [("weather", "music"), ("music", "lora"), ("lora", "weather")])
def test_against_dense_matrices(
    adapters: AdapterSet, folders: dict[str, Path], pair: tuple[str, str], active: str | None
) -> None:
    adapters.switch(active)
    found = adapters.compare(*pair)
    assert (found.first, found.second) == pair
    one, other = ({name: dense_change(layer) for name, layer in adapted_layers(loaded(folders[name]))} for name in pair)
    assert {row.layer for row in found.layers} == one.keys() | other.keys()
    inner, squares = 0.0, [0.0, 0.0]
    for row in found.layers:
        shape = (one | other)[row.layer].shape
        first, second = (changes.get(row.layer, torch.zeros(shape)).double() for changes in (one, other))
        assert row.first_norm == pytest.approx(first.norm().item(), rel=1e-12)
        assert row.second_norm == pytest.approx(second.norm().item(), rel=1e-12)
        if row.layer in one and row.layer in other:
            cosine = nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()
            assert row.cosine == pytest.approx(cosine, rel=1e-10)
            assert row.norm_ratio == pytest.approx((second.norm() / first.norm()).item(), rel=1e-10)
        else:
            assert math.isnan(row.cosine)
        inner += (first * second).sum().item()
        squares = [squares[0] + first.square().sum().item(), squares[1] + second.square().sum().item()]
    assert found.total.cosine == pytest.approx(inner / math.sqrt(squares[0] * squares[1]), rel=1e-10, abs=1e-15)
    assert found.total.first_norm == pytest.approx(math.sqrt(squares[0]), rel=1e-12)


def test_special_cases(adapters: AdapterSet) -> None:
    assert all(row.cosine == pytest.approx(1, abs=1e-12) for row in adapters.compare("weather", "weather").layers)
    adapters.mix("opposite", {"weather": -2.0})
    found = adapters.compare("weather", "opposite")
    assert found.total.cosine == pytest.approx(-1, abs=1e-12)
    assert all(row.norm_ratio == pytest.approx(2, rel=1e-12) for row in found.layers)


def test_adapters_of_models_of_other_sizes() -> None:
    def factors(out: int, features: int) -> dict[str, Factors]:
        return {"layer": lambda: (torch.ones(out, 2), torch.ones(2, features))}

    for sizes in ((3, 5), (4, 6)):
        with pytest.raises(AdapterFileError, match=r"different models(.|\n)*'layer' of sizes"):
            compare_layers(("one", "other"), factors(4, 5), factors(*sizes))


def test_no_dense_matrix_is_formed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3000, 2000))
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    save_adapter(model, tmp_path)
    adapters = AdapterSet(model, name="one")
    adapters.load("two", tmp_path)
    with torch.profiler.profile(profile_memory=True) as profile:
        adapters.compare("one", "two")
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 200_000


def test_an_adapter_at_its_start() -> None:
    row = LayerComparison("layer", 0.0, 0.0, 0.0)
    assert math.isnan(row.cosine)
    assert math.isnan(row.norm_ratio)
    assert LayerComparison("layer", 0.0, 0.0, 1.0).norm_ratio == math.inf


def test_layers_of_one_adapter_share_a_row() -> None:
    rows = (
        LayerComparison("a", 1.0, 1.0, 2.0),
        *(LayerComparison(name, 0.0, norm, 0.0, is_in_second=False) for name, norm in (("b", 3.0), ("c", 4.0))),
        LayerComparison("d", 0.0, 0.0, 7.0, is_in_first=False),
    )
    lines = [line.split("  ") for line in str(AdapterComparison("weather", "music", rows)).splitlines()]
    first = [line[0].strip() for line in lines[1:]]
    assert first == ["a", "2 layers (only in weather)", "d (only in music)", "all layers"]
    assert [cell.strip() for cell in lines[2][1:] if cell.strip()] == ["-", "5", "0", "0"]


def test_the_table() -> None:
    rows = (
        LayerComparison("model.q_proj", 0.6, 1.0, 2.0),
        LayerComparison("embed", 0.0, 0.5, 0.0),
        LayerComparison("head", 0.0, 0.0, 0.0),
    )
    assert str(AdapterComparison("weather", "music", rows)).splitlines() == [
        "layer         cosine  |weather|  |music|  ratio",
        "model.q_proj   0.300          1        2      2",
        "embed              -        0.5        0      0",
        "head               -          0        0      -",
        "all layers     0.268       1.12        2   1.79",
    ]
