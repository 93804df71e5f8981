"""The study: its comparisons parse, its page says what its files say, and its variants do what they are named for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.quality.__main__ import agreement
from benchmarks.quality.every_study import STUDIES
from benchmarks.quality.frozen_layers import FrozenLayers, States, remember_layers
from benchmarks.quality.pictures import Results, _cut
from benchmarks.quality.random_labels import write_random_labels
from benchmarks.quality.report import (
    RESULTS,
    _over_studies,
    _signed,
    _verdict,
    at_loras_rate,
    kept_results,
    table_of_all,
    write_page,
)
from benchmarks.quality.variants import DrawnCoefficients, FollowingScale, NaturalScale, PenalisedCoefficients
from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.analysis.plots.figure import new_figure
from pera_lightning.cli.compare.comparison_methods import method_of
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear
from tests.conftest import ROOT
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_llama


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", STUDIES)
def test_every_comparison_parses(name: str) -> None:
    plan = STUDIES[name].plan(Path("data"), workers=1)
    assert next(iter(plan.methods)) == "lora"
    for text in plan.methods.values():
        parsed = parse_fit("compare", [*plan.words, *method_of(text).words])
        assert parsed.pera.rank == STUDIES[name].rank


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    written = write_page(tmp_path)
    for path in written:
        assert (ROOT / "docs" / path.name).is_file()
    assert (ROOT / "docs" / "RESULTS.md").read_text() == written[0].read_text()
    assert {path.stem for path in (ROOT / RESULTS).glob("*.csv")} <= STUDIES.keys()
    assert table_of_all(kept_results()) in (ROOT / "docs/guide/polynomial.md").read_text()


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


def saved(folder: Path, kind: str) -> str:
    model = tiny_llama(num_hidden_layers=3, pad_token_id=0) if kind == "llama" else tiny_bert_classifier()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)
    return str(folder)


LOADERS: dict[str, Callable[[str], PreTrainedModel]] = {
    "llama": AutoModelForCausalLM.from_pretrained,
    "bert": AutoModelForSequenceClassification.from_pretrained,
}
ROWS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [3, 4, 2, 0, 0], [5, 6, 7, 8, 9]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("count", [1, 2])
def test_remembered_layers_change_nothing(kind: str, count: int, tmp_path: Path) -> None:
    model = LOADERS[kind](saved(tmp_path, kind))
    real = ROWS["attention_mask"].bool() if kind == "llama" else slice(None)
    expected = model(**ROWS).logits[real]
    states: States = {}
    remember_layers(model, count, states)
    for _ in range(2):
        torch.testing.assert_close(model(**ROWS).logits[real], expected, rtol=0, atol=1e-6)
    assert sorted(len(row) for row in states.values()) == [3, 5]


@pytest.mark.parametrize("generates", [False, True])
def test_generation_in_a_test_has_all_layers(generates: bool, tmp_path: Path) -> None:
    model = LOADERS["llama"](saved(tmp_path / "model", "llama")).eval()
    ids, options = ROWS["input_ids"], {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids[:1], **options)
    module = SimpleNamespace(built_model=lambda: model, generate_in_test=generates)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(seed=3, train_source="train.json"))
    callback = FrozenLayers(2, str(tmp_path / "frozen"))
    callback.on_fit_start(trainer, module)  # type: ignore[arg-type]
    assert len(list(model.model.layers[0].parameters())) == 0
    callback.on_test_start(trainer, module)  # type: ignore[arg-type]
    assert (len(list(model.model.layers[0].parameters())) > 0) == generates
    if generates:
        assert torch.equal(model.generate(ids[:1], **options), expected)


@pytest.mark.parametrize(("of_all_seeds", "ending"), [(False, "_2_train.json_3.pt"), (True, "_2_train.json.pt")])
def test_states_are_kept_for_the_next_process(
    of_all_seeds: bool, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model", "llama")
    data = SimpleNamespace(seed=3, train_source="train.json")
    kept: list[States] = []
    for _ in range(2):
        processes_own: dict[Path, States] = {}
        monkeypatch.setattr("benchmarks.quality.frozen_layers._STATES", processes_own)
        model = LOADERS["llama"](path)
        callback, trainer = FrozenLayers(2, str(tmp_path / "frozen"), of_all_seeds), SimpleNamespace(datamodule=data)
        callback.on_fit_start(trainer, SimpleNamespace(built_model=lambda model=model: model))  # type: ignore[arg-type]
        [states] = processes_own.values()
        kept.append(dict(states))
        model(**ROWS)
        callback.on_test_end(trainer, None)  # type: ignore[arg-type]
    assert [len(states) for states in kept] == [0, 2]
    [file] = (tmp_path / "frozen").iterdir()
    assert file.name.endswith(ending)


def test_random_labels_are_the_same_rows_twice(tmp_path: Path) -> None:
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    rows = [f"sentence {number}\t1" for number in range(200)]
    (tmp_path / "glue" / "SST-2" / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    write_random_labels(tmp_path, tmp_path / "out")
    train, dev = ((tmp_path / "out" / f"{name}.tsv").read_text().splitlines() for name in ("train", "dev"))
    assert train == dev
    assert [line.split("\t")[0] for line in train] == ["sentence", *(row.split("\t")[0] for row in rows)]
    assert 70 < sum(int(line.split("\t")[1]) for line in train[1:]) < 130


def run_of(method: str, rate: float, seed: int, selection: float, report: float | None) -> ComparedRun:
    return ComparedRun(method, rate, seed, selection, report, {}, 0.5, 0.0, 10, 4, 1.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "the same, bit by bit"),
        ({"metrics": {"test_loss": 0.50005}}, "the same to 1e-4"),
        ({"energy": 0.1}, "the same to 1e-4"),
        ({"metrics": {"test_loss": 0.5002}}, "not the same"),
        ({"metrics": {"test_f1": 0.5}}, "not the same"),
        ({"steps": 5}, "not the same"),
    ],
)
def test_agreement_of_a_run_that_is_made_again(change: dict[str, Any], expected: str) -> None:
    kept = dataclasses.replace(run_of("lora", 1e-3, 0, 0.4, 0.5), metrics={"test_loss": 0.5})
    assert agreement(kept, dataclasses.replace(kept, **change)).startswith(expected)


def test_the_same_learning_rate_is_loras_best_one() -> None:
    study = dataclasses.replace(STUDIES["sst2_upper_rank_1"], tuning_seeds=1)
    runs = [run_of("lora", 1e-3, seed, 0.3, 0.4) for seed in (0, 1)] + [run_of("lora", 1e-2, 0, 0.5, 9.0)]
    # Another rate is best for this one; at LoRA's it has two seeds, of which one diverged.
    runs += [run_of("full", 1e-2, seed, 0.1, 9.0) for seed in (0, 1)]
    runs += [run_of("full", 1e-3, 0, 0.2, 0.5), run_of("full", 1e-3, 1, 0.2, None), run_of("full", 1e-3, 7, 0.2, 9.0)]
    assert at_loras_rate(Results(study, runs), "full") == pytest.approx(0.1)


def test_a_closer_look_does_not_count() -> None:
    found = kept_results()[0]
    look = Results(dataclasses.replace(found.study, is_closer_look=True), found.runs)
    assert table_of_all([found, look]) == table_of_all([found]) != table_of_all([found, found])


def test_differences_over_studies() -> None:
    # 4.3027 is Student's t for three values.
    assert _over_studies([1.0, 2.0, 3.0]) == f"+2.00 % [{2 - 4.3027 / 3**0.5:+.2f}, {2 + 4.3027 / 3**0.5:+.2f}]"
    assert _over_studies([-1.0]) == "-1.00 %"


def test_losses_that_would_hide_all_others_are_cut_off() -> None:
    axes = new_figure(2, 2).subplots()
    axes.plot([2.1, 2.2, 2.3, 9.0])
    assert _cut(axes, [2.1, 2.2, 2.3, 9.0])
    low, high = axes.get_ylim()
    assert low < 2.1 < 2.3 < high < 9.0
    assert not _cut(axes, [2.1, 2.2, 2.3, 2.9])


def test_what_is_rounded_away_has_no_sign() -> None:
    assert [_signed(value) for value in (-0.00001, 0.0, 0.25, -0.00005001)] == ["0", "0", "+0.2500", "-0.0001"]


@pytest.mark.parametrize(
    ("difference", "interval", "expected"),
    [
        (-0.02, (-0.03, -0.01), "better"),
        (0.02, (0.01, 0.03), "worse"),
        (-0.02, (-0.05, 0.01), "even"),
        (-0.0005, (-0.0006, -0.0004), "even"),
        (-0.02, None, "even"),
    ],
)
def test_verdicts(difference: float, interval: tuple[float, float] | None, expected: str) -> None:
    summary = SimpleNamespace(difference=difference, interval=interval)
    assert _verdict(summary, reference=1.0) == expected  # type: ignore[arg-type]
