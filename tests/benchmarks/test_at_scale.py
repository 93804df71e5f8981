"""The counts for many GPUs: of models of the published sizes, and the page and the file hold what is counted."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from benchmarks import at_scale, at_scale_report
from benchmarks.at_scale import DEVICES, MODELS, STRATEGIES
from pera_lightning import PeraConfig
from tests.conftest import ROOT

PUBLISHED = {"8B": 8_030_261_248, "70B": 70_553_706_496, "405B": 405_853_388_800}


@pytest.fixture(scope="module")
def written() -> list[dict[str, Any]]:
    with (ROOT / "benchmarks" / "results" / "at_scale.csv").open(encoding="utf-8") as file:
        texts = ("model", "strategy", "adapter")
        return [
            {name: value if name in texts else int(value) if value else None for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("model", MODELS)
def test_parameters(model: str) -> None:
    shapes = at_scale.shapes(model, STRATEGIES["DDP"], PeraConfig(8))
    frozen = [value for unit in shapes.units for value in unit.parameters if not value.trained]
    assert sum(value.nbytes // value.itemsize for value in frozen) == PUBLISHED[model]
    assert all(value.itemsize == 4 for unit in shapes.units for value in unit.trained)


@pytest.mark.parametrize(
    "case",
    [
        ("8B", "TP 8 + FSDP2", 16, "LoRA", 64),
        ("70B", "4-bit FSDP2", 16, "PERA", 8),
        ("405B", "FSDP2", 8, "LoRA", 256),
    ],
)
def test_the_file_holds_what_is_counted(written: list[dict[str, Any]], case: tuple[Any, ...]) -> None:
    assert at_scale.row(*case) in written


def test_the_page_holds_what_the_file_does(written: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "at_scale.md").read_text(encoding="utf-8")
    assert page == at_scale_report.page(written)


def test_every_model_on_every_number_of_gpus(written: list[dict[str, Any]]) -> None:
    cases = {(row["model"], row["strategy"], row["gpus"]) for row in written}
    assert cases == {(model, strategy, gpus) for model in MODELS for strategy in STRATEGIES for gpus in DEVICES}


def test_pera_sends_what_lora_sends_and_h(written: list[dict[str, Any]]) -> None:
    """h: 36 coefficients for each of the 7 layers of a block at rank 8, 136 at rank 16, in float32."""
    for model, sizes in MODELS.items():
        for rank, coefficients in ((8, 36), (16, 136)):
            held = {
                adapter: at_scale_report.select(
                    written, model=model, rank=rank, adapter=adapter, strategy="DDP", gpus=64
                )[0]["factors"]
                for adapter in ("PERA", "LoRA")
            }
            assert held["PERA"] - held["LoRA"] == 4 * 7 * coefficients * sizes["num_hidden_layers"]
