"""Every commonsense recipe of the paper fits a tiny random model of its architecture for one step, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning.cli.estimate.parsed_fit import parse_fit
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.commonsense import write_commonsense
from tests.support.pretrained import save_pretrained

FOLDER = ROOT / "configs" / "paper" / "commonsense"
MODELS = {"llama_2_7b": "llama", "llama_3_8b": "llama", "qwen2.5_7b": "qwen2"}
# Key and value heads of the models' config.json, in the shape of 4 query heads.
KV_HEADS = {"llama_2_7b": 4, "llama_3_8b": 1, "qwen2.5_7b": 1}
OVERRIDES: dict[str, dict[str, Any]] = {
    "square_only": {"terms": "square"},
    "cross_only": {"terms": "cross"},
    "lora": {"order": 1},
    "placement_attention": {"target_modules": ["q_proj", "k_proj", "v_proj"]},
    "placement_mlp": {"target_modules": ["up_proj", "down_proj"]},
}


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
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*MODELS, *OVERRIDES}


@pytest.mark.parametrize("name", MODELS)
def test_parses(name: str) -> None:
    parsed = parse_fit("estimate", ["--config", str(FOLDER / f"{name}.yaml")])
    assert parsed.data.init_args.batch_size == 16
    assert parsed.trainer.max_epochs == 3


@pytest.mark.parametrize(("name", "override"), [(name, key) for name in MODELS for key in OVERRIDES])
def test_overrides_parse(name: str, override: str) -> None:
    parsed = parse_fit(
        "estimate", ["--config", str(FOLDER / f"{name}.yaml"), "--config", str(FOLDER / f"{override}.yaml")]
    )
    for key, value in OVERRIDES[override].items():
        assert parsed.pera[key] == value
    assert parsed.pera.rank == 16


@pytest.mark.parametrize("name", MODELS)
def test_steps_with_a_tenth_of_the_data(name: str, tmp_path: Path) -> None:
    form = fit(name, tmp_path, "--data.init_args.fraction", 0.1, "--pera.rank", 2)
    assert "rank" in json.dumps(form)


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_step(override: str, tmp_path: Path) -> None:
    fit("llama_2_7b", tmp_path, "--config", FOLDER / f"{override}.yaml")
