"""The command line on a tiny model: fit, test, generate, export and compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.test_main import run
from tests.support.comparisons import write_fit
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
BEST = "runs/tiny/fit/checkpoints/best.ckpt"
ADAPTER = "runs/tiny/fit/adapter"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> Path:
    """A folder with a tiny model, data and a config, after a fit."""
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    save_pretrained(folder / "model", tiny_llama(hidden_size=64, intermediate_size=64))
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("a", "b", "c", "d") * 4]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "tiny", "version": "fit"}}
    saving = {"dirpath": "runs/tiny/fit/checkpoints", "filename": "best", "monitor": "val_loss"}
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": accelerator,
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": logger,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": saving}],
        },
        "pera": {"rank": 2, "dropout": 0.05},
        "model": {
            "class_path": "PeraCausalLM",
            "init_args": {"pretrained": "model", "learning_rate": 0.01, "max_new_tokens": 4},
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train_files": "rows.jsonl", "val_split": 0.25, "test_files": "rows.jsonl", "batch_size": 4},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run("fit", "--config", "config.yaml", folder=folder)
    return folder


def test_fit_leaves_an_adapter(project: Path) -> None:
    assert (project / ADAPTER / "adapter_model.safetensors").is_file()
    assert (project / BEST).is_file()


def test_fit_on_the_default_device(project: Path, device: torch.device) -> None:
    """Without `accelerator` Lightning takes the GPU that there is."""
    words = ("--trainer.accelerator", "auto", "--trainer.max_steps", 1, "--trainer.logger", "false")
    run("fit", "--config", "config.yaml", *words, "--trainer.callbacks", "null", folder=project)


@pytest.mark.parametrize("quantization", ["nf4-dq", "int8"])
def test_fit_quantized(project: Path, quantization: str) -> None:
    words = ("--model.init_args.quantization", quantization, "--model.init_args.gradient_checkpointing", "true")
    stop = ("--trainer.max_steps", 2, "--trainer.logger", "false", "--trainer.callbacks", "null")
    run("fit", "--config", "config.yaml", *words, *stop, folder=project)


def test_test(project: Path) -> None:
    words = ("--ckpt_path", BEST, "--trainer.logger.init_args.version", "test", "--compare_base", "true")
    printed = run("test", "--config", "config.yaml", *words, folder=project)
    assert "Test without and with the adapter" in printed


def test_generate(project: Path) -> None:
    words = ("--adapter", ADAPTER, "--max_new_tokens", 4, "--prompt", "say a")
    plain = run("generate", *words, folder=project).splitlines()[-1]
    assert run("generate", *words, "--merged", "true", folder=project).splitlines()[-1] == plain


def test_export(project: Path) -> None:
    printed = run("export", "--adapter", ADAPTER, "--out", "lora", folder=project)
    assert "exact but for rounding" in printed


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
def test_compare(tmp_path: Path, accelerator: str) -> None:
    folder = write_fit(tmp_path)
    words = ("--trainer.accelerator", accelerator, "--trainer.devices", 1, "--metric", "accuracy", "--out", "out")
    rates = ("--methods", "lora", "full", "--learning_rates", "1e-3", "--seeds", 0)
    printed = run("compare", "--config", "fit.yaml", *words, *rates, folder=folder)
    assert "test_accuracy" in printed
    assert (folder / "out" / "comparison.png").is_file()
