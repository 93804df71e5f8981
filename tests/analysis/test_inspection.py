from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, save_adapter
from pera_lightning.analysis import AdapterInspection, LayerInspection, inspect_adapter, mean_energy
from pera_lightning.analysis.inspection_table import as_table, write_table
from pera_lightning.analysis.plots import plot_inspection, plot_interactions, plot_spectrum
from pera_lightning.errors import AdapterFileError, InjectionError, TrainingError
from pera_lightning.functional import monomials
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.reference import reference_delta_weight

FORMS = [(1, "full"), (2, "full"), (2, "square"), (2, "cross"), (3, "full"), (4, "cross")]


def adapted(order: int = 2, terms: str = "full", **options: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(9, 14), nn.Embedding(11, 6), nn.Linear(6, 5))
    targets = ["0", "1", "2"]
    inject_adapter(model, PeraConfig(3, order, terms=terms, alpha=5, target_modules=targets, **options))
    randomise_adapter(model)
    return model


def parts_of(rank: int, order: int, terms: str) -> dict[str, list[bool]]:
    """Part -> which monomials it has."""
    every = monomials(rank, order, terms)
    masks = {
        "square": [len(c) == 2 and c[0] == c[1] for c in every],
        "cross": [len(c) == 2 and c[0] != c[1] for c in every],
        **{f"degree {degree}": [len(c) == degree for c in every] for degree in range(3, order + 1)},
    }
    return {part: mask for part, mask in masks.items() if any(mask)}


@pytest.mark.parametrize(("order", "terms"), FORMS)
@pytest.mark.parametrize("scale", [1.0, "auto"])
def test_rows_are_those_of_the_dense_matrix(order: int, terms: str, scale: float | str) -> None:
    model = adapted(order, terms, coefficient_scale=scale)
    found = inspect_adapter(model)
    assert [row.layer for row in found.layers] == ["0", "1", "2"]
    for row, (_, layer) in zip(found.layers, adapted_layers(model), strict=True):
        A, B = layer.pera_A.double(), layer.pera_B.double()
        h = None if layer.pera_h is None else layer.coefficients.double()
        dense = reference_delta_weight(A, B, h, order, terms, layer.scaling)
        linear = reference_delta_weight(A, B, None, 1, terms, layer.scaling)
        norms = {"linear": linear.norm().item()}
        for part, mask in parts_of(3, order, terms).items():
            masked = h * torch.tensor(mask)
            norms[part] = (reference_delta_weight(A, B, masked, order, terms, layer.scaling) - linear).norm().item()
        assert row.part_norms == pytest.approx(norms, rel=1e-6)
        assert found.parts == tuple(norms)
        assert row.shape == tuple(dense.shape)
        assert (row.rank, row.expanded_rank) == (3, 3 + (0 if h is None else len(h)))
        assert row.norm == pytest.approx(dense.norm().item(), rel=1e-6)
        assert row.polynomial_energy == pytest.approx(((dense - linear).norm() / linear.norm()).item(), rel=1e-5)
        values = torch.linalg.svdvals(dense)[: row.expanded_rank]
        torch.testing.assert_close(row.singular_values[: len(values)], values, rtol=1e-6, atol=1e-9)
        assert row.numerical_rank == int((values > 1e-6 * values[0]).sum())
        p = [value / sum(values.tolist()) for value in values.tolist() if value > 0]
        assert row.effective_rank == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-5)
        assert row.stable_rank == pytest.approx((dense.norm() / values[0]).item() ** 2, rel=1e-6)
        beyond = (values[3:].square().sum() / values.square().sum()).item()
        assert row.beyond_rank == pytest.approx(beyond, rel=1e-5, abs=1e-12)
        shares = {part: norm**2 / sum(n**2 for n in norms.values()) for part, norm in norms.items()}
        assert {part: row.share(part) for part in norms} == pytest.approx(shares, rel=1e-6)
        if h is not None:
            torch.testing.assert_close(row.coefficients, h)
    assert found.polynomial_energy == pytest.approx(mean_energy(model), rel=1e-3)


def test_all_layers_together() -> None:
    found = inspect_adapter(adapted())
    squares = [row.norm**2 for row in found.layers]
    assert found.norm == pytest.approx(math.sqrt(sum(squares)))
    assert sum(map(found.share, found.parts)) == pytest.approx(1.0)
    assert found.beyond_rank == pytest.approx(
        sum(row.beyond_rank * square for row, square in zip(found.layers, squares, strict=True)) / sum(squares)
    )


def test_an_adapter_at_its_start_is_zero() -> None:
    model = nn.Sequential(nn.Linear(9, 7))
    inject_adapter(model, PeraConfig(2))
    [row] = inspect_adapter(model).layers
    numbers = (row.norm, row.numerical_rank, row.effective_rank, row.stable_rank, row.beyond_rank, row.share("linear"))
    assert numbers == (0, 0, 0, 0, 0, 0)
    assert row.polynomial_energy == 0
    assert inspect_adapter(model).beyond_rank == 0


def test_a_folder_is_read_without_its_model(tmp_path: Path) -> None:
    model = nn.ModuleDict({"body": nn.Linear(9, 7), "head": nn.Linear(7, 5), "tokens": nn.Embedding(12, 4)})
    config = PeraConfig(
        2, target_modules=["body"], modules_to_save=["head"], rank_pattern={"body": 4}, trainable_tokens={"tokens": [3]}
    )
    inject_adapter(model, config)
    randomise_adapter(model)
    save_adapter(model, tmp_path)
    found, direct = inspect_adapter(tmp_path), inspect_adapter(model)
    assert [(row.layer, row.rank, row.expanded_rank) for row in found.layers] == [("body", 4, 14)]
    assert found.layers[0].norm == direct.layers[0].norm
    assert "head" in found.others[0]
    assert found.others[1] == "1 rows of tokens"


def test_the_table_on_the_screen_and_in_a_file(tmp_path: Path) -> None:

    found = inspect_adapter(adapted(3))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(as_table(found, console.width))
    text = console.export_text()
    for word in ("layer", "square", "cross", "degree 3", "all 3 layers", "14 x 9"):
        assert word in text
    write_table(found, tmp_path / "layers.csv")
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["0", "1", "2"]
    assert float(rows[0]["norm"]) == pytest.approx(found.layers[0].norm)
    assert float(rows[0]["share of degree 3"]) == pytest.approx(found.layers[0].share("degree 3"))
    assert int(rows[2]["expanded_rank"]) == found.layers[2].expanded_rank


def printed(found: AdapterInspection, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(as_table(found, width), crop=False)
    return console.export_text()


def test_a_narrow_screen_shows_whole_numbers_and_names() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(4))
    randomise_adapter(model)
    found = inspect_adapter(model)
    for width in (140, 80, 60, 24):
        text = printed(found, width)
        assert "\u2026" not in text  # what rich shortens ends so
        assert ("effective" in text, "32 x 32" in text, "|dW|" in text) == (width > 80, width > 80, True)
        rows = [line.split() for line in text.splitlines() if "model.layers." in line]
        names = {row.layer: row for row in found.layers}
        # Each name in one cell, and its number beside it.
        assert len(rows) == 10
        assert all(float(row[1 + 5 * (width > 80)]) == pytest.approx(names[row[0]].norm, rel=1e-2) for row in rows)
    assert "square" in printed(found, 80)


def test_the_screen_shows_the_layers_with_most_energy_and_totals(tmp_path: Path) -> None:
    model = tiny_llama(num_hidden_layers=3)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    found = inspect_adapter(model)
    text = printed(found, 100)
    ranked = sorted(found.layers, key=lambda row: -row.norm)
    assert [line.split()[0] for line in text.splitlines() if "model.layers." in line] == [r.layer for r in ranked[:10]]
    assert "the 10 of 21 layers with most energy" in text
    assert "all 21 layers" in text
    assert "All layers and columns are in layers.csv" in " ".join(text.split())
    write_table(found, tmp_path / "layers.csv")
    assert len((tmp_path / "layers.csv").read_text().splitlines()) == 22


def test_a_polynomial_part_without_effect_is_called_so() -> None:
    model = adapted()
    found = inspect_adapter(model)
    assert found.polynomial_share == pytest.approx(1 - found.share("linear"))
    figures = plot_inspection(found) | {"interactions": plot_interactions({"0": torch.full((3, 3), 0.1)})}
    assert not [name for name, figure in figures.items() if "no practical effect" in title_of(figure)]
    assert "no practical effect" not in printed(found, 140)
    for _, layer in adapted_layers(model):
        layer.pera_h.data *= 1e-7
    found = inspect_adapter(model)
    figures = plot_inspection(found) | {"interactions": plot_interactions({"0": torch.full((3, 3), 1e-4)})}
    for name in ("spectrum", "parts", "coefficients", "interactions"):
        assert "no practical effect" in title_of(figures[name]), name
    assert "no practical effect" in " ".join(printed(found, 140).split())
    # A plain LoRA has no such part.
    for figure in plot_inspection(inspect_adapter(adapted(1))).values():
        assert "no practical effect" not in title_of(figure)


def title_of(figure: Figure) -> str:
    return figure.get_suptitle() + figure.axes[0].get_title()


def test_spectra_of_kinds_are_told_apart() -> None:
    model = tiny_llama(num_hidden_layers=3)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    axes = plot_spectrum(inspect_adapter(model)).axes[0]
    lines = [line for line in axes.lines if "median of 3" in str(line.get_label())]
    assert len(lines) == 7
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 7


def test_spectra_of_many_kinds() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcdefghijklm"})
    inject_adapter(model, PeraConfig(2, target_modules=list("abcdefghijklm")))
    randomise_adapter(model)
    labels = [str(line.get_label()) for line in plot_spectrum(inspect_adapter(model)).axes[0].lines]
    assert "3 kinds with less energy" in labels
    assert len([label for label in labels if label in set("abcdefghijklm")]) == 10


def test_a_model_of_many_layers_of_half_precision() -> None:
    model = tiny_llama(num_hidden_layers=12).to(torch.bfloat16)
    inject_adapter(model, PeraConfig(4))
    randomise_adapter(model)
    found = inspect_adapter(model)
    assert len(found.layers) == 84
    assert all(isinstance(row, LayerInspection) and row.numerical_rank == 14 for row in found.layers)


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="config is missing"):
        inspect_adapter(tmp_path / "nowhere")
    with pytest.raises(InjectionError, match="no adapter"):
        inspect_adapter(nn.Linear(2, 2))
    model = adapted()
    model[0].pera_h.data[0] = math.nan
    with pytest.raises(TrainingError, match="pera_h"):
        inspect_adapter(model)
