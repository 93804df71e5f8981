"""Choosing learning rates, paired differences, their intervals, and the comparison's table, file and picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from pera_lightning.analysis.method_comparison import ComparedRun, best_learning_rate, mean_interval, summarise, verdict
from pera_lightning.analysis.method_table import as_table, read_runs, write_runs
from pera_lightning.analysis.plots.methods import plot_methods, tuned_curve


def run_of(method: str, rate: float, seed: int, selection: float | None, report: float | None = 0.5) -> ComparedRun:
    return ComparedRun(
        method=method,
        learning_rate=rate,
        seed=seed,
        selection=selection,
        report=None if selection is None else report,
        metrics={} if selection is None else {"val_loss": 1 / 3, "test_loss": 2.0},
        train_loss=0.25,
        energy=1e-5,
        trainable=1234,
        steps=10,
        step_ms=1.5,
        reason="The loss is not finite;\n  got: loss inf" if selection is None else "",
        peak_mb=1234.5,
        disk_mb=1 / 7,
        minutes=0.25,
    )


def printed(runs: list[ComparedRun], tuning_seeds: tuple[int, ...]) -> str:
    file = io.StringIO()
    Console(width=200, file=file).print(as_table(summarise(runs, tuning_seeds, "max"), "test_accuracy"))
    return file.getvalue()


def test_the_learning_rate_is_chosen_by_the_mean_over_the_tuning_seeds_in_validation() -> None:
    runs = [run_of("a", 1e-3, 0, 0.5), run_of("a", 1e-3, 1, 0.5), run_of("a", 1e-2, 0, 0.9), run_of("a", 1e-2, 1, 0.2)]
    # Neither what is reported nor a seed that only reports takes part in the choice.
    runs = [*runs, run_of("a", 1e-2, 2, 99.0, 99.0), run_of("b", 1e-2, 0, 99.0), run_of("b", 1e-2, 1, 99.0)]
    assert best_learning_rate(runs, "a", (0, 1), "max") == 1e-2
    assert best_learning_rate(runs, "a", (0, 1), "min") == 1e-3
    assert best_learning_rate(runs, "a", (1,), "max") == 1e-3
    assert best_learning_rate(runs, "absent", (0, 1), "max") is None


def test_a_rate_that_diverged_or_lacks_a_seed_is_not_chosen_and_of_equals_the_smaller_is() -> None:
    runs = [run_of("a", 1e-1, 0, 0.9), run_of("a", 1e-1, 1, None), run_of("a", 1e-2, 0, 0.9)]
    assert best_learning_rate(runs, "a", (0, 1), "max") is None
    runs += [run_of("a", rate, seed, 0.3) for rate in (1e-3, 1e-4) for seed in (0, 1)]
    assert best_learning_rate(runs, "a", (0, 1), "max") == 1e-4
    assert best_learning_rate(runs, "a", (0, 1), "min") == 1e-4


def test_summaries_pair_the_seeds_of_the_reference() -> None:
    runs = [run_of("lora", 1e-3, seed, 0.5, 0.1 * seed) for seed in range(3)]
    runs += [run_of("lora", 1e-2, 0, 0.4, 77.0), run_of("full", 1e-3, 0, 0.4, 77.0)]
    # Seed 7 has no partner, seed 2 of this method diverged at its best rate after tuning on seed 0 alone.
    runs += [run_of("full", 1e-2, seed, 0.6, 0.1 * seed + 0.25) for seed in (0, 1, 7)] + [run_of("full", 1e-2, 2, None)]
    lora, full = summarise(runs, (0,), "max")
    assert (lora.method, lora.learning_rate, lora.at_edge) == ("lora", 1e-3, True)
    assert lora.differences == {0: 0.0, 1: 0.0, 2: 0.0}
    assert lora.mean == pytest.approx(0.1)
    assert lora.spread == pytest.approx(0.1)
    assert full.differences == {0: pytest.approx(0.25), 1: pytest.approx(0.25)}
    assert full.difference == pytest.approx(0.25)
    assert full.interval == (pytest.approx(0.25), pytest.approx(0.25))
    assert (full.diverged, full.runs) == (1, 5)
    assert set(full.reports) == {0, 1, 7}


def test_the_energy_is_that_of_runs_that_did_not_diverge() -> None:
    runs = [dataclasses.replace(run_of("full", 1e-3, seed, 0.5), energy=0.4) for seed in (0, 1)]
    runs.append(dataclasses.replace(run_of("full", 1e-3, 2, None), energy=0.0))
    assert summarise(runs, (0,), "max")[0].energy == pytest.approx(0.4)


def test_a_best_rate_within_the_grid_is_not_at_its_edge() -> None:
    runs = [run_of("a", rate, 0, value) for rate, value in ((1e-3, 0.1), (1e-2, 0.2), (1e-1, 0.1))]
    assert not summarise(runs, (0,), "max")[0].at_edge
    assert summarise(runs[1:], (0,), "max")[0].at_edge
    # A grid of one says nothing about what lies beyond.
    assert not summarise(runs[:1], (0,), "max")[0].at_edge


def test_a_method_that_always_diverges_is_shown() -> None:
    runs = [run_of("lora", 1e-3, 0, 0.5), run_of("wild", 1e-3, 0, None)]
    wild = summarise(runs, (0,), "max")[1]
    assert wild.learning_rate is None
    assert (wild.diverged, wild.runs, wild.reports) == (1, 1, {})
    assert math.isnan(wild.mean)
    lines = printed(runs, (0,)).splitlines()
    [place] = [number for number, line in enumerate(lines) if "wild" in line]
    assert "none" in lines[place]
    assert lines[place + 1].strip() == "1 of 1"
    assert lines[place + 2].strip() == "diverged"


@pytest.mark.parametrize("count", [2, 3, 6, 20, 21, 40])
def test_the_interval_holds_19_of_20_means_of_as_many_normal_values(count: int) -> None:
    values = [math.sin(3.0 * number) for number in range(count)]
    low, high = mean_interval(values)  # type: ignore[misc]
    mean = statistics.fmean(values)
    assert low + high == pytest.approx(2 * mean)
    # The share of Student's distribution within the ends, by the trapezoidal rule in the angle atan(t / sqrt(df)).
    freedom = count - 1
    end = math.atan((high - mean) / (statistics.stdev(values) / math.sqrt(count)) / math.sqrt(freedom))
    density = [math.cos(math.pi * step / 200_000) ** (freedom - 1) for step in range(100_000)]
    inside = int(end / (math.pi / 2) * len(density))
    whole, part = (sum(values) - density[0] / 2 for values in (density, density[:inside]))
    # The quantiles have five digits, the expansion beyond the table four.
    assert part == pytest.approx(0.95 * whole, rel=1e-4)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([1.0]) is None


def test_runs_come_back_from_their_file(tmp_path: Path) -> None:
    runs = [run_of("lora", 3e-4, 0, 1 / 3, 2 / 3), run_of("full", 1e-3, 1, None)]
    runs.append(dataclasses.replace(run_of("full", 1e-3, 2, 0.1), train_loss=None))
    write_runs(runs, tmp_path / "runs.csv")
    assert read_runs(tmp_path / "runs.csv") == runs


def test_runs_of_files_without_sizes_have_none(tmp_path: Path) -> None:
    write_runs([run_of("lora", 3e-4, 0, 1 / 3, 2 / 3)], tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name not in ("peak_mb", "disk_mb", "minutes")]
    with (tmp_path / "earlier.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    [run] = read_runs(tmp_path / "earlier.csv")
    assert all(math.isnan(value) for value in (run.peak_mb, run.disk_mb, run.minutes))
    assert "-" in printed([run], (0,)).splitlines()[5].split()[-2:]


def test_the_table_marks_edges_and_shows_paired_differences() -> None:
    runs = [run_of(name, 1e-3, seed, 0.5, value) for name, value in (("lora", 0.1), ("full", 0.3)) for seed in (0, 1)]
    runs.append(run_of("full", 1e-2, 0, 0.4))
    runs.append(run_of("full", 1e-2, 1, 0.4))
    text = printed(runs, (0, 1))
    [lora] = [line for line in text.splitlines() if line.strip().startswith("lora")]
    [full] = [line for line in text.splitlines() if line.strip().startswith("full")]
    lines = text.splitlines()
    spread, interval = (" ".join(lines[lines.index(line) + 1 :][:2]) for line in (lora, full))
    assert "0.1000" in lora
    assert "± 0.0000" in spread
    assert "0.001!" in full
    assert "+0.2000" in full
    assert "+0.2000 to +0.2000" in " ".join(interval.replace("± 0.0000", "").split())
    assert "difference from lora" in " ".join(text.split())


def test_the_picture_shows_every_run_and_marks_what_diverged() -> None:
    runs = [run_of("lora", rate, seed, 0.5 + rate) for rate in (1e-3, 1e-2) for seed in (0, 1)]
    runs += [run_of("full", 1e-3, seed, 0.7, 0.9) for seed in (0, 1)]
    runs += [run_of("full", 1e-2, 0, None), run_of("wild", 1e-2, 0, None)]
    figure = plot_methods(runs, summarise(runs, (0, 1), "max"), "val_accuracy", "test_accuracy")
    curves, _ = figure.axes
    crosses = [line for line in curves.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1e-2], [1e-2]]
    dots = [line for line in curves.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [4, 2, 0]
    *rings, chosen = [(*line.get_xdata(), *line.get_ydata()) for line in curves.lines if line.get_marker() == "o"]
    assert chosen == ()  # of the legend
    assert rings == [(1e-2, pytest.approx(0.51)), (1e-3, pytest.approx(0.7))]
    assert curves.get_xlabel() == "learning rate"


def test_a_curve_is_of_the_seeds_that_tried_every_learning_rate() -> None:
    runs = [run_of("a", rate, seed, seed + rate) for rate in (1e-3, 1e-2, 1e-1) for seed in (0, 1)]
    others = [run_of("a", 1e-2, 7, 100.0), run_of("a", 1e-1, 8, 100.0)]
    assert tuned_curve([*others, *runs]) == {rate: pytest.approx(0.5 + rate) for rate in (1e-3, 1e-2, 1e-1)}
    diverged = [run_of("a", 1.0, seed, None if seed else 0.5) for seed in (0, 1)]
    assert list(tuned_curve(runs + diverged)) == [1e-3, 1e-2, 1e-1]
    assert tuned_curve([]) == tuned_curve([run_of("a", 1e-3, 0, 0.5), run_of("a", 1e-2, 1, 0.5)]) == {}


def test_differences_by_rounding_look_like_none() -> None:
    runs = [
        run_of(name, 1e-3, seed, 0.5, 0.5 + tiny) for name, tiny in (("lora", 0), ("full", 1e-7)) for seed in (0, 1)
    ]
    curves, differences = plot_methods(runs, summarise(runs, (0, 1), "max"), "val_loss", "test_loss").axes
    low, high = differences.get_xlim()
    assert high - low == pytest.approx(0.005, rel=0.01)
    low, high = curves.get_ylim()
    assert high - low >= 0.005


def test_the_right_hand_side_names_the_methods() -> None:
    runs = [run_of(name, 1e-3, seed, 0.5) for name in ("lora", "full", "wild") for seed in (0, 1)]
    _, differences = plot_methods(runs, summarise(runs, (0, 1), "max"), "val_accuracy", "test_accuracy").axes
    assert [label.get_text() for label in differences.get_yticklabels()] == ["full", "wild"]
    assert "difference from lora" in differences.get_xlabel()


def test_the_verdict_names_what_can_be_told_from_the_reference() -> None:
    values = {
        "lora": (0.50, 0.51, 0.52),
        "good": (0.40, 0.41, 0.421),
        "bad": (0.6, 0.612, 0.62),
        "even": (0.4, 0.51, 0.6),
    }
    runs = [run_of(name, 1e-3, seed, 0.5, value) for name, found in values.items() for seed, value in enumerate(found)]
    summaries = summarise(runs, (0, 1, 2), "min")
    assert verdict(summaries, "min") == "Can be told from lora: better: good; worse: bad; not the others."
    assert verdict(summaries, "max") == "Can be told from lora: better: bad; worse: good; not the others."
    assert verdict([summaries[0], summaries[3]], "min") == "No method can be told from lora by 3 seeds."
    assert "nothing is compared" in verdict(summaries[:1], "min")
    alone = summarise([run for run in runs if run.seed == 0], (0,), "min")
    assert "fewer than two common seeds" in verdict(alone, "min")
