"""The study: its comparisons parse, its page says what its files say, and its variants do what they are named for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.quality.report import RESULTS, write_page
from benchmarks.quality.studies import STUDIES
from benchmarks.quality.variants import DrawnCoefficients, FollowingScale, NaturalScale, PenalisedCoefficients
from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.cli.parsed_fit import parse_fit
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear
from tests.conftest import ROOT
from tests.support.models import randomise_adapter


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", STUDIES)
def test_every_comparison_parses(name: str) -> None:
    plan = STUDIES[name].plan(Path("data"), workers=1)
    assert next(iter(plan.methods)) == "lora"
    for words in plan.methods.values():
        parsed = parse_fit("compare", [*plan.words, *words.split()])
        assert parsed.pera.rank == STUDIES[name].rank


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    written = write_page(tmp_path)
    for path in written:
        assert (ROOT / "docs" / path.name).is_file()
    assert (ROOT / "docs" / "RESULTS.md").read_text() == written[0].read_text()
    assert {path.stem for path in (ROOT / RESULTS).glob("*.csv")} <= STUDIES.keys()


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 7))
    inject_adapter(model, PeraConfig(rank=2))
    return model


def layer_of(model: torch.nn.Module) -> PeraLinear:
    [(_, layer)] = adapted_layers(model)
    return layer


@pytest.mark.parametrize("of_both", [False, True])
def test_following_scale(model: torch.nn.Module, of_both: bool) -> None:
    layer, callback = layer_of(model), FollowingScale(of_both)
    a = layer.pera_A.square().mean().sqrt().item()
    callback.on_train_batch_start(None, model, None, 0)  # type: ignore[arg-type]
    assert layer.config.coefficient_scale == pytest.approx(1 / a)
    randomise_adapter(model)
    a, b = (factor.square().mean().sqrt().item() for factor in (layer.pera_A, layer.pera_B))
    callback.on_train_batch_start(None, model, None, 1)  # type: ignore[arg-type]
    assert layer.config.coefficient_scale == pytest.approx(1 / (a * b) if of_both else 1 / a)
    assert layer.coefficients is not None
    assert layer.pera_h is not None
    assert torch.allclose(layer.coefficients, layer.pera_h * layer.config.coefficient_scale)


def test_starts(model: torch.nn.Module) -> None:
    layer = layer_of(model)
    row = layer.pera_A[0] / layer.pera_A[0].norm()
    DrawnCoefficients(0.5).on_train_start(None, model)  # type: ignore[arg-type]
    assert layer.pera_h is not None
    assert layer.pera_h.count_nonzero() == 3
    NaturalScale().on_train_start(None, model)  # type: ignore[arg-type]
    assert layer.pera_A.square().mean().item() == pytest.approx(1)
    assert torch.allclose(layer.pera_A[0] / layer.pera_A[0].norm(), row)
    assert torch.equal(model(torch.ones(12)), layer.base_layer(torch.ones(12)))


def test_penalty(model: torch.nn.Module) -> None:
    layer = layer_of(model)
    randomise_adapter(model)
    assert layer.pera_h is not None
    layer.pera_h.grad = torch.ones_like(layer.pera_h)
    PenalisedCoefficients(0.25).on_before_optimizer_step(None, model, None)  # type: ignore[arg-type]
    assert torch.allclose(layer.pera_h.grad, 1 + 0.25 * layer.pera_h)
