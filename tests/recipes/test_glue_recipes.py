"""The GLUE recipes hold the numbers of the paper's tables 2, 7 and 8, and fit a tiny random RoBERTa for a step."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.paper import tables
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.data.reading.glue_files import cut_in_two
from pera_lightning.data.reading.glue_sources import labels_of
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.classifiers import write_task
from tests.support.pretrained import save_pretrained
from tests.support.transformers_models import SETTINGS

FOLDER = ROOT / "configs" / "paper" / "glue"
SIZES = ("base", "large")
METRICS = {"cola": "matthews", "stsb": "pearson"}
RECIPES = [(size, task) for size in SIZES for task in tables.GLUE_TASKS.values()]
STEPPED: dict[tuple[str, str], tuple[tuple[str, ...], tuple[int, str, int]]] = {
    ("base", "cola"): ((), (2, "full", 36)),
    ("base", "qnli"): (("--pera.order", "1"), (1, "full", 0)),
    ("large", "mrpc"): (("--pera.terms", "square"), (2, "square", 8)),
    ("large", "stsb"): (("--pera.terms", "cross"), (2, "cross", 28)),
}
"""Recipes that are fitted, each as one of the variants: its options -> order, terms and coefficients of a layer."""
ADAPTED = {f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")}


def configs(size: str, task: str) -> list[str]:
    files = [FOLDER / f"roberta_{size}.yaml", FOLDER / "tasks" / f"{size}_{task}.yaml"]
    return [str(word) for word in itertools.chain.from_iterable(("--config", file) for file in files)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A RoBERTa with the head of its pretraining, as on the hub."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(**SETTINGS["RobertaForSequenceClassification"])
    return save_pretrained(tmp_path_factory.mktemp("roberta"), RobertaForMaskedLM(config))


@pytest.fixture(scope="module")
def fits(model: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """One step and a validation of a recipe; returns the folder of the run."""
    folder = tmp_path_factory.mktemp("fits")

    def fit(size: str, task: str) -> Path:
        run(
            *("fit", *configs(size, task), *STEPPED[size, task][0], "--model.init_args.pretrained", model),
            *("--data.init_args.folder", write_task(folder / f"{size}_{task}", task, rows=8)),
            *("--trainer.accelerator", "cpu", "--trainer.max_steps", 1, "--data.init_args.max_train_rows", 4),
            *("--trainer.log_every_n_steps", 1, "--trainer.enable_progress_bar", "false"),
            *("--trainer.enable_model_summary", "false"),
            folder=folder,
        )
        return folder / "runs" / f"paper_glue_roberta_{size}_{task}" / "fit"

    return fit


def test_all_recipes_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {f"roberta_{size}" for size in SIZES}
    assert {path.stem for path in (FOLDER / "tasks").iterdir()} == {f"{size}_{task}" for size, task in RECIPES}


@pytest.mark.parametrize(("size", "task"), RECIPES)
def test_the_numbers_are_those_of_the_tables(size: str, task: str) -> None:
    fit = parse_fit("estimate", configs(size, task))
    trainer, pera, model, data = fit.trainer, fit.pera, fit.model.init_args, fit.data.init_args
    settings = tables.TABLE_8[f"roberta-{size}"][task]
    assert (model.learning_rate, trainer.max_epochs, pera.dropout) == settings
    assert (data.task, data.batch_size, data.max_length) == (task, tables.GLUE_BATCH_SIZE, tables.GLUE_LENGTH)
    assert (model.warmup_ratio, model.warmup_steps, model.schedule) == (tables.GLUE_WARMUP_RATIO, 0, "linear")
    assert (pera.rank, pera.alpha, pera.order, pera.terms) == (tables.GLUE_RANK, None, 2, "full")
    assert pera.target_modules == ["query", "value"]
    assert model.pretrained == f"FacebookAI/roberta-{size}"
    assert fit.seed_everything == data.seed == tables.GLUE_SEEDS[0]
    # Of torch's AdamW, and what DeLoRA's script leaves out.
    assert (model.weight_decay, trainer.gradient_clip_val) == (0.01, None)
    (checkpoint,) = trainer.callbacks
    assert checkpoint.init_args.monitor == f"val_{METRICS.get(task, 'accuracy')}"
    assert checkpoint.init_args.mode == "max"
    assert trainer.logger.init_args.name == f"paper_glue_roberta_{size}_{task}"


@pytest.mark.parametrize(("size", "task"), RECIPES)
def test_headers_quote_the_results_to_expect(size: str, task: str) -> None:
    place, name = list(tables.GLUE_TASKS.values()).index(task), f"roberta-{size}"
    pera, quoted = (table[name] for table in (tables.TABLE_2, tables.TABLE_2_QUOTED))
    header = (FOLDER / "tasks" / f"{size}_{task}.yaml").read_text(encoding="utf-8")
    assert f"PERA {pera.tasks[place]:.2f}; LoRA, quoted from others, {quoted.tasks[place]:.2f}." in header
    header = (FOLDER / f"roberta_{size}.yaml").read_text(encoding="utf-8")
    assert f"PERA {pera.mean:.2f}; LoRA, quoted from others, {quoted.mean:.2f}." in header


def test_the_parts_of_the_validation_sets_are_those_of_table_7() -> None:
    """The rows of GLUE's own validation sets; the seed of a run has no say (`tests/data/test_glue.py`)."""
    sizes = {"sst2": 872, "mrpc": 408, "cola": 1043, "qnli": 5463, "rte": 277, "stsb": 1500}
    assert {task: tuple(map(len, cut_in_two(rows, 0))) for task, rows in sizes.items()} == tables.TABLE_7


def check_adapter(folder: Path, task: str, order: int, terms: str, coefficients: int) -> None:
    """The adapter has the layers and the form of the recipe, and holds the head whole."""
    form = json.loads((folder / "adapter_config.json").read_text())
    assert set(form["layers"]) == ADAPTED
    assert (form["config"]["order"], form["config"]["terms"]) == (order, terms)
    assert form["saved_modules"] == ["classifier"]
    tensors: dict[str, Any] = load_file(folder / "adapter_model.safetensors")
    assert {len(value) for name, value in tensors.items() if name.endswith("pera_h")} == {coefficients} - {0}
    assert tensors["classifier.out_proj.weight"].shape == (labels_of(task), 64)
    assert tensors["classifier.dense.weight"].shape == (64, 64)
    assert "| modules saved whole | classifier |" in (folder / "README.md").read_text()


# After one step all sentences have about the same score.
@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero:UserWarning")
@pytest.mark.parametrize(("size", "task"), STEPPED)
def test_steps(size: str, task: str, fits: Callable[[str, str], Path]) -> None:
    run_folder = fits(size, task)
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()
    check_adapter(run_folder / "adapter", task, *STEPPED[size, task][1])
