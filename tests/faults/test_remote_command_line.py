"""The command line with its logs, checkpoints and adapter at a URL: nothing of them in a local folder `memory:`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest
import torch

from tests.cli.test_main import run
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning", "ignore:The dirpath has changed:UserWarning"
)


def test_a_run_at_a_url(tmp_path: Path) -> None:
    torch.manual_seed(0)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    save_pretrained(tmp_path / "model", tiny_llama())
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("a", "b", "c", "d") * 2]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    logger = {
        "class_path": "CSVLogger",
        "init_args": {"save_dir": "memory://bucket", "name": "tiny", "version": "fit"},
    }
    common = [
        "--seed_everything",
        "0",
        "--trainer.accelerator",
        "cpu",
        "--trainer.logger",
        json.dumps(logger),
        "--pera.rank",
        "2",
    ]
    common += ["--model", "PeraCausalLM", "--model.pretrained", "model", "--data", "InstructionDataModule"]
    common += ["--data.test_files", "rows.jsonl", "--data.batch_size", "4"]
    fit = ["--data.train_files", "rows.jsonl", "--data.val_split", "0.5", "--trainer.max_epochs", "1"]
    run("fit", *common, *fit, "--trainer.log_every_n_steps", "1", folder=tmp_path)
    run_folder = "memory://bucket/tiny/fit"
    held = {path.removeprefix("/bucket/tiny/fit/") for path in memory.find("/bucket/tiny/fit")}
    assert {"config.yaml", "metrics.csv", "loss_curve.png", "adapter/adapter_model.safetensors"} <= held
    (checkpoint,) = (name for name in held if name.endswith(".ckpt"))
    tested = run(
        "test", *common, "--ckpt_path", f"{run_folder}/{checkpoint}", "--compare_base", "true", folder=tmp_path
    )
    assert "Test without and with the adapter" in tested
    # The metrics of the fit are kept, those of the test are elsewhere.
    assert "train_loss" in memory.cat("/bucket/tiny/fit/metrics.csv").decode()
    assert memory.isfile("/bucket/tiny/test/comparison.csv")
    printed = run("fit", *common, *fit, "--ckpt_path", f"{run_folder}/none.ckpt", folder=tmp_path, ok=False)
    assert "There is no such checkpoint" in printed
    assert not [name for name in os.listdir(tmp_path) if name.endswith(":")]
