"""The commonsense recipes hold the numbers of the paper's tables, and fit a tiny random model of their architecture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper import tables
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.commonsense import write_commonsense
from tests.support.pretrained import save_pretrained

FOLDER = ROOT / "configs" / "paper" / "commonsense"
MODELS = {"llama_2_7b": "llama", "llama_3_8b": "llama", "qwen2.5_7b": "qwen2"}
HUB = {
    "llama_2_7b": "meta-llama/Llama-2-7b-hf",
    "llama_3_8b": "meta-llama/Meta-Llama-3-8B",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B",
}
# Key and value heads of the models' config.json, in the shape of 4 query heads.
KV_HEADS = {"llama_2_7b": 4, "llama_3_8b": 1, "qwen2.5_7b": 1}


def tiny(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        MODELS[name],
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS[name],
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def fit(name: str, folder: Path, *words: object) -> dict[str, Any]:
    """One step of a recipe; returns what the adapter folder says of its form."""
    save_pretrained(folder / "model", tiny(name))
    data = write_commonsense(folder / "data", rows=1, train_rows=130)
    run(
        *("fit", "--config", FOLDER / f"{name}.yaml", *words, "--model.init_args.pretrained", folder / "model"),
        *("--data.init_args.train_file", data / "train.json", "--data.init_args.test_folder", data),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", 1),
        *("--trainer.val_check_interval", 1, "--trainer.limit_val_batches", 1),
        folder=folder,
    )
    adapter = folder / "runs" / f"paper_commonsense_{name}" / "fit" / "adapter"
    assert (adapter / "adapter_model.safetensors").is_file()
    return json.loads((adapter / "adapter_config.json").read_text())


def test_all_recipes_are_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_are_those_of_the_tables(name: str) -> None:
    parsed = parse_fit("estimate", ["--config", str(FOLDER / f"{name}.yaml")])
    trainer, pera, model, data = parsed.trainer, parsed.pera, parsed.model.init_args, parsed.data.init_args
    paper = tables.TABLE_6
    assert (pera.rank, pera.alpha, pera.dropout, pera.order, pera.terms) == (16, None, paper.dropout, 2, "full")
    assert pera.target_modules == ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    assert (model.learning_rate, model.warmup_steps, model.warmup_ratio) == (paper.learning_rate, paper.warmup_steps, 0)
    assert (model.schedule, model.optimizer, data.batch_size) == ("linear", "adamw", paper.batch_size)
    assert (trainer.max_epochs, trainer.accumulate_grad_batches) == (paper.epochs, 1)
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (paper.steps_between_validations, None)
    assert parsed.seed_everything == data.seed == paper.seed
    assert (data.fraction, data.val_rows, model.pretrained) == (1.0, 120, HUB[name])
    # The authors' script, and what transformers' Trainer does by itself.
    assert (model.weight_decay, trainer.gradient_clip_val, data.max_length) == (0.01, 1.0, 256)
    (checkpoint,) = trainer.callbacks
    assert (checkpoint.init_args.monitor, checkpoint.init_args.mode) == ("val_loss", "min")


@pytest.mark.parametrize("name", MODELS)
def test_headers_quote_the_results_to_expect(name: str) -> None:
    """The whole row of table 1, and all means of the tables of Llama-3-8B."""
    header = " ".join((FOLDER / f"{name}.yaml").read_text(encoding="utf-8").replace("#", "").split())
    key = name.replace("_", "-")
    for (model, rank), row in tables.TABLE_1.items():
        quoted = " ".join(f"{score:.2f}" for score in (row.mean, *row.tasks))
        assert (f"rank {rank} {quoted}" in header) == (model == key)
    for (model, method, rank), row in tables.TABLE_1_QUOTED.items():
        assert (f"{method} {row.mean:.2f} (rank {rank})" in header) == (model == key)
    assert f"{paper_beams(header)} beams" == f"{tables.TABLE_6.beams} beams"
    if key == "llama-3-8b":
        for table in (tables.RANKS, tables.PLACEMENTS, tables.SHARES, tables.TERMS):
            assert ", ".join(f"{label} {row.mean:.2f}" for label, row in table.items()) in header
    if key == "llama-2-7b":
        pera, lora = tables.TABLE_5["pera"], tables.TABLE_5["lora"]
        for cost in (pera, lora):
            hours = f"{cost.training_minutes // 60} h {cost.training_minutes % 60}"
            minutes = f"{cost.inference_seconds // 60} min {cost.inference_seconds % 60}"
            for figure in (f"{cost.training_gb:.2f}", hours, f"{cost.inference_gb:.2f}", minutes):
                assert figure in header


def paper_beams(header: str) -> str:
    """Of the command that evaluates."""
    found = re.search(r"--num_beams (\d+)", header)
    assert found is not None
    return found[1]


def test_recipes_differ_in_the_model_alone() -> None:
    bodies = {
        re.sub(name, "MODEL", re.sub(HUB[name], "HUB", text[text.index("\nseed_everything") :]))
        for name in MODELS
        for text in [(FOLDER / f"{name}.yaml").read_text(encoding="utf-8")]
    }
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama_2_7b", ("--pera.rank", 4)),
        ("llama_3_8b", ("--data.init_args.fraction", 0.1, "--pera.rank", 2)),
        ("qwen2.5_7b", ("--pera.order", 1)),
    ],
)
def test_steps(name: str, words: tuple[object, ...], tmp_path: Path) -> None:
    form = fit(name, tmp_path, *words)["config"]
    assert (form["order"], form["alpha"], form["dropout"]) == (1 if name == "qwen2.5_7b" else 2, None, 0.05)
