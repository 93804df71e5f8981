"""The GLUE recipes hold LoRA's published numbers and fit a tiny random RoBERTa for one step, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pera_lightning.cli.parsed_fit import parse_fit
from pera_lightning.integration.data.glue_sources import labels_of
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.classifiers import write_task
from tests.support.pretrained import save_pretrained
from tests.support.transformers_models import SETTINGS

PAPER = ROOT / "configs" / "paper"
FOLDER = PAPER / "glue"
TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
# arXiv 2106.09685, Table 9: the rows of RoBERTa base, and of RoBERTa large with a dagger, in the order of TASKS.
BATCH_SIZES = {"base": (16, 16, 16, 32, 32, 16, 32, 16), "large": (4,) * 8}
EPOCHS = {"base": (30, 60, 30, 80, 25, 25, 80, 40), "large": (10, 10, 20, 20, 10, 20, 20, 10)}
RATES = {
    "base": (5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4),
    "large": (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4),
}
ALPHAS = {"base": 8, "large": 16}
LENGTHS = {"base": 512, "large": 128}
METRICS = {"cola": "val_matthews", "stsb": "val_pearson"}
RECIPES = [(size, task) for size in ALPHAS for task in TASKS]
VARIANTS: dict[str, dict[str, Any]] = {
    "square_only": {"terms": "square"},
    "cross_only": {"terms": "cross"},
    "lora": {"order": 1},
}
TERMS = {"square_only": 8, "cross_only": 28, "lora": None}
"""Coefficients of a layer at rank 8."""
ADAPTED = {f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")}


def configs(size: str, task: str) -> list[str]:
    return [
        *("--config", str(FOLDER / f"roberta_{size}.yaml")),
        *("--config", str(FOLDER / "tasks" / f"{size}_{task}.yaml")),
    ]


def variant_config(variant: str) -> list[str]:
    return ["--config", str(PAPER / "commonsense" / f"{variant}.yaml")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A RoBERTa with the head of its pretraining, as on the hub."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig(**SETTINGS["RobertaForSequenceClassification"])
    return save_pretrained(tmp_path_factory.mktemp("roberta"), RobertaForMaskedLM(config))


def fit(size: str, task: str, model: str, folder: Path, *words: str) -> Path:
    """One step and a validation of a recipe; returns the folder of the run."""
    data = write_task(folder / "data", task, rows=8)
    run(
        *("fit", *configs(size, task), *words, "--model.init_args.pretrained", model),
        *("--data.init_args.folder", data, "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.log_every_n_steps", 1),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        folder=folder,
    )
    return folder / "runs" / f"paper_glue_roberta_{size}_{task}" / "fit"


def saved_adapter(run_folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    adapter = run_folder / "adapter"
    return load_file(adapter / "adapter_model.safetensors"), json.loads((adapter / "adapter_config.json").read_text())


def test_all_recipes_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {f"roberta_{size}" for size in ALPHAS}
    assert {path.stem for path in (FOLDER / "tasks").iterdir()} == {f"{size}_{task}" for size, task in RECIPES}


@pytest.mark.parametrize(("size", "task"), RECIPES)
def test_parses_to_the_published_numbers(size: str, task: str) -> None:
    parsed = parse_fit("estimate", configs(size, task))
    place = TASKS.index(task)
    model, data = parsed.model.init_args, parsed.data.init_args
    assert data.task == task
    assert (parsed.trainer.max_epochs, data.batch_size) == (EPOCHS[size][place], BATCH_SIZES[size][place])
    assert model.learning_rate == RATES[size][place]
    assert (parsed.pera.rank, parsed.pera.alpha, parsed.pera.order) == (8, ALPHAS[size], 2)
    assert (model.warmup_ratio, model.schedule, model.weight_decay) == (0.06, "linear", 0.1)
    assert model.pretrained == f"FacebookAI/roberta-{size}"
    assert data.max_length == LENGTHS[size]
    (checkpoint,) = parsed.trainer.callbacks
    assert checkpoint.init_args.monitor == METRICS.get(task, "val_accuracy")
    assert checkpoint.init_args.mode == "max"


@pytest.mark.parametrize("size", ALPHAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_parse(size: str, variant: str) -> None:
    parsed = parse_fit("estimate", [*configs(size, "rte"), *variant_config(variant)])
    for key, value in VARIANTS[variant].items():
        assert parsed.pera[key] == value
    assert parsed.pera.target_modules == ["query", "value"]


@pytest.mark.parametrize("size", ALPHAS)
def test_a_model_without_a_task_is_refused(size: str) -> None:
    printed = run("fit", "--config", FOLDER / f"roberta_{size}.yaml", ok=False)
    assert "arguments are required: task" in printed


@pytest.mark.parametrize(("size", "task"), RECIPES)
def test_steps(size: str, task: str, model: str, tmp_path: Path) -> None:
    run_folder = fit(size, task, model, tmp_path)
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()
    tensors, form = saved_adapter(run_folder)
    print(json.dumps(form, indent=1)); print((run_folder/"adapter"/"README.md").read_text())
    assert {key.removesuffix(".pera_A") for key in tensors if key.endswith(".pera_A")} == ADAPTED


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_step(variant: str, model: str, tmp_path: Path) -> None:
    tensors, _ = saved_adapter(fit("base", "rte", model, tmp_path, *variant_config(variant)))
    coefficients = {len(value) for key, value in tensors.items() if key.endswith(".pera_h")}
    assert coefficients == ({TERMS[variant]} - {None})
