"""Paths that do not exist are told before anything is imported, with near names and where they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pera_lightning.cli.options.given import given_options
from pera_lightning.cli.options.places import check_adapter, check_checkpoint, check_places
from pera_lightning.errors import AdapterFileError, CheckpointError, ConfigError, DataError

BOTH = ("--model", "PeraCausalLM", "--data", "InstructionDataModule")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model, data and an adapter."""
    for name in ("model", "run/adapter", "run/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("rows.jsonl", "run/checkpoints/best.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "run/adapter/adapter_config.json").write_text('{"peft_type": "PERA"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_folder() -> None:
    check_places("fit", [*BOTH, "--model.pretrained", "./model"])
    with pytest.raises(ConfigError, match=r"did you mean model\?"):
        check_places("fit", [*BOTH, "--model.pretrained", "./modle"])


def test_options_of_other_classes_are_left_to_them() -> None:
    check_places("fit", ["--model", "my.Model", "--model.pretrained", "./no", "--data", "my.Data", "--data.folder=no"])


@pytest.mark.parametrize("value", ["rws.jsonl", "[rows.jsonl, rws.jsonl]"])
def test_data_files(folder: Path, value: str) -> None:
    with pytest.raises(DataError, match=r"did you mean rows\.jsonl\?"):
        check_places("fit", [*BOTH, "--data.train_files", value])
    (folder / "fit.yaml").write_text(f"data:\n  class_path: TextDataModule\n  init_args:\n    train_files: {value}\n")
    with pytest.raises(DataError, match=r"rws\.jsonl \(fit\.yaml, line 4"):
        check_places("fit", ["--config", "fit.yaml"])
    # What comes later counts, and what a command does not read need not exist.
    check_places("fit", ["--config", "fit.yaml", "--data.train_files", "rows.jsonl"])
    check_places("test", ["--config", "fit.yaml"])
    check_places("fit", ["--config", "fit.yaml", "--print_config"])


def test_a_url_is_not_looked_for() -> None:
    check_places("fit", [*BOTH, "--data.train_files", "s3://bucket/rows.jsonl"])


def test_a_checkpoint() -> None:
    check_places("fit", ["--ckpt_path", "run/checkpoints/best.ckpt"])
    check_places("fit", ["--ckpt_path", "null"])
    with pytest.raises(CheckpointError, match=r"did you mean run/checkpoints/best\.ckpt\?"):
        check_places("test", ["--ckpt_path", "run/checkpoints/bset.ckpt"])
    with pytest.raises(CheckpointError, match="only the process of the fit knows"):
        check_places("test", ["--ckpt_path", "best"])


def test_fit_cannot_go_on_from_an_adapter() -> None:
    for command in ("validate", "test", "predict"):
        check_checkpoint(command, "run/adapter")
    with pytest.raises(CheckpointError, match=r"to go on with its fit, name run/checkpoints/best\.ckpt"):
        check_checkpoint("fit", "run/adapter")


def test_the_adapter_of_a_tool() -> None:
    check_adapter(given_options(["--adapter", "run/adapter"]))
    check_adapter(given_options(["--adapter", "s3://bucket/adapter"]))
    with pytest.raises(AdapterFileError, match=r"did you mean run/adapter\?"):
        check_adapter(given_options(["--adapter", "run/adaptor"]))
    with pytest.raises(AdapterFileError, match=r"consolidate --checkpoint run/checkpoints/best\.ckpt"):
        check_adapter(given_options(["--adapter", "run/checkpoints/best.ckpt"]))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from pera_lightning.cli.options.places import check_places\n"
        f"check_places('fit', {[*BOTH, '--model.pretrained', './model', '--data.train_files', 'rows.jsonl']})\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
