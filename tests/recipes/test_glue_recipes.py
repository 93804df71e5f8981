"""The GLUE recipes hold LoRA's published numbers and fit a tiny random RoBERTa for one step, on the CPU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pera_lightning.data.reading.glue_sources import labels_of
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
VARIANTS: dict[tuple[str, str], str] = {
    ("base", "qqp"): "lora",
    ("large", "mrpc"): "square_only",
    ("large", "qnli"): "cross_only",
}
"""The recipes that run as one of the variants, so that each of these runs too."""
FORMS: dict[str | None, tuple[int, str, int]] = {
    None: (2, "full", 36),
    "lora": (1, "full", 0),
    "square_only": (2, "square", 8),
    "cross_only": (2, "cross", 28),
}
"""Order, terms and coefficients of a layer at rank 8."""
ADAPTED = {f"roberta.encoder.layer.{layer}.attention.self.{name}" for layer in (0, 1) for name in ("query", "value")}


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
        configs = [FOLDER / f"roberta_{size}.yaml", FOLDER / "tasks" / f"{size}_{task}.yaml"]
        if variant := VARIANTS.get((size, task)):
            configs.append(PAPER / "commonsense" / f"{variant}.yaml")
        run(
            *("fit", *itertools.chain.from_iterable(("--config", path) for path in configs)),
            *("--model.init_args.pretrained", model),
            *("--data.init_args.folder", write_task(folder / f"{size}_{task}", task, rows=8)),
            *("--trainer.accelerator", "cpu", "--trainer.max_steps", 1, "--data.init_args.max_train_rows", 4),
            *("--trainer.log_every_n_steps", 1, "--trainer.enable_progress_bar", "false"),
            *("--trainer.enable_model_summary", "false"),
            folder=folder,
        )
        return folder / "runs" / f"paper_glue_roberta_{size}_{task}" / "fit"

    return fit


def check_numbers(config: dict[str, Any], size: str, task: str) -> None:
    """Compare what a run had parsed with the table."""
    place = TASKS.index(task)
    trainer, pera = config["trainer"], config["pera"]
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert data["task"] == task
    assert trainer["max_epochs"] == EPOCHS[size][place]
    assert data["batch_size"] == BATCH_SIZES[size][place]
    assert model["learning_rate"] == RATES[size][place]
    assert data["max_length"] == LENGTHS[size]
    assert (pera["rank"], pera["alpha"]) == (8, ALPHAS[size])
    assert (model["warmup_ratio"], model["schedule"], model["weight_decay"]) == (0.06, "linear", 0.1)
    (checkpoint,) = trainer["callbacks"]
    assert checkpoint["init_args"]["monitor"] == METRICS.get(task, "val_accuracy")
    assert checkpoint["init_args"]["mode"] == "max"


def check_adapter(folder: Path, size: str, task: str) -> None:
    """The adapter has the layers and the form of the recipe, and holds the head whole."""
    order, terms, coefficients = FORMS[VARIANTS.get((size, task))]
    form = json.loads((folder / "adapter_config.json").read_text())
    assert set(form["layers"]) == ADAPTED
    assert (form["config"]["order"], form["config"]["terms"]) == (order, terms)
    assert form["saved_modules"] == ["classifier"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {len(value) for name, value in tensors.items() if name.endswith("pera_h")} == {coefficients} - {0}
    assert tensors["classifier.out_proj.weight"].shape == (labels_of(task), 64)
    assert tensors["classifier.dense.weight"].shape == (64, 64)
    assert "| modules saved whole | classifier |" in (folder / "README.md").read_text()


def test_all_recipes_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {f"roberta_{size}" for size in ALPHAS}
    assert {path.stem for path in (FOLDER / "tasks").iterdir()} == {f"{size}_{task}" for size, task in RECIPES}
    assert {*VARIANTS.values(), None} == set(FORMS)


@pytest.mark.parametrize("size", ALPHAS)
def test_the_base_is_the_one_it_is_named_after(size: str) -> None:
    recipe = yaml.safe_load((FOLDER / f"roberta_{size}.yaml").read_text(encoding="utf-8"))
    assert recipe["model"]["init_args"]["pretrained"] == f"FacebookAI/roberta-{size}"
    # Without a file of tasks/ a run would have neither task nor epochs.
    assert "task" not in recipe["data"]["init_args"]


# After one step all sentences have about the same score.
@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero:UserWarning")
@pytest.mark.parametrize(("size", "task"), RECIPES)
def test_steps_with_the_published_numbers(size: str, task: str, fits: Callable[[str, str], Path]) -> None:
    run_folder = fits(size, task)
    check_numbers(yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8")), size, task)
    assert (run_folder / "checkpoints" / "best.ckpt").is_file()
    check_adapter(run_folder / "adapter", size, task)
