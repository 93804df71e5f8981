"""Paths that do not exist are told before anything is imported, with near names and where they stand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pera_lightning.cli.options.places import check_checkpoint, check_places
from pera_lightning.errors import AdapterFileError, CheckpointError, ConfigError, DataError
from tests.support.light_starts import run_lightly

BOTH = ("--model", "PeraCausalLM", "--data", "InstructionDataModule")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model, data, an adapter and checkpoints."""
    for name in ("model", "run/adapter", "run/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    for name in ("rows.jsonl", "shards/.metadata", "shards/meta.pt"):
        (tmp_path / name).touch()
    with zipfile.ZipFile(tmp_path / "run/checkpoints/best.ckpt", "w") as archive:
        archive.writestr("best/data.pkl", "")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "run/adapter/adapter_config.json").write_text('{"peft_type": "PERA"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_folder() -> None:
    check_places("fit", [*BOTH, "--model.pretrained", "./model"])
    with pytest.raises(ConfigError, match=r"did you mean model\?"):
        check_places("fit", [*BOTH, "--model.pretrained", "./modle"])


def test_options_of_other_classes_are_left_to_them() -> None:
    check_places("fit", ["--model", "my.Model", "--model.pretrained", "./no", "--data", "my.Data", "--data.folder=no"])


@pytest.mark.parametrize("value", ["rws.jsonl", "[rows.jsonl, rws.jsonl]", "\n    - rows.jsonl\n    - rws.jsonl"])
def test_data_files(folder: Path, value: str) -> None:
    (folder / "fit.yaml").write_text(f"data:\n  class_path: TextDataModule\n  init_args:\n    train_files: {value}\n")
    with pytest.raises(DataError, match=r"rws\.jsonl \(fit\.yaml, line 4(.|\n)*did you mean rows\.jsonl\?"):
        check_places("fit", ["--config", "fit.yaml"])
    # What comes later counts, and what a command does not read need not exist.
    check_places("fit", ["--config", "fit.yaml", "--data.train_files", "rows.jsonl"])
    check_places("test", ["--config", "fit.yaml"])
    check_places("fit", ["--config", "fit.yaml", "--print_config"])


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit", "--data TextDataModule --data.init_args.train_files rws.jsonl"),
        ("fit", "--data TextDataModule --data.train_files=[rows.jsonl,rws.jsonl]"),
        ("fit", "--data TextDataModule --data.train_files+ rws.jsonl --data.train_files+=rows.jsonl"),
        ("fit", "--data pera_lightning.data.text.TextDataModule --data.train_files rws.jsonl"),
        ("fit", "--data pera_lightning.CommonsenseDataModule --data.train_file rws.jsonl"),
        ("fit", "--data InstructionDataModule --data.train_files rows.jsonl --data.val_files rws.jsonl"),
        ("fit", "--data GlueDataModule --data.task sst2 --data.folder ./rws.jsonl"),
        ("fit", "--data TextDataModule --data.dataset ./rws.jsonl"),
        ("validate", "--data ClassificationDataModule --data.val_files rws.jsonl"),
        ("validate", "--data InstructionDataModule --data.train_files rws.jsonl --data.val_split 0.1"),
        ("test", "--data GlueDataModule --data.task sst2 --data.folder rws.jsonl"),
        ("predict", "--data ClassificationDataModule --data.test_files rws.jsonl"),
    ],
)
def test_options_of_data(command: str, options: str) -> None:
    with pytest.raises(DataError, match=r"does not exist(.|\n)*did you mean rows\.jsonl\?"):
        check_places(command, options.split())


def test_what_is_not_looked_for() -> None:
    check_places("fit", [*BOTH, "--data.train_files", "s3://bucket/rows.jsonl"])
    check_places("fit", [*BOTH, "--data.dataset", "org/rows"])
    check_places("validate", [*BOTH, "--data.train_files", "rws.jsonl", "--data.val_files", "rows.jsonl"])


def test_a_lora_to_start_from() -> None:
    check_places("fit", ["--pera.init_from", "run/adapter"])
    with pytest.raises(AdapterFileError, match=r"did you mean run/adapter\?"):
        check_places("fit", ["--pera.init_from", "run/adaptr"])


def test_a_checkpoint(folder: Path) -> None:
    check_places("fit", ["--ckpt_path", "run/checkpoints/best.ckpt"])
    check_places("fit", ["--ckpt_path", "null"])
    with pytest.raises(CheckpointError, match=r"did you mean run/checkpoints/best\.ckpt\?"):
        check_places("test", ["--ckpt_path", "run/checkpoints/bset.ckpt"])
    with pytest.raises(CheckpointError, match="only the process of the fit knows"):
        check_places("test", ["--ckpt_path", "best"])
    (folder / "fit.yaml").write_text("ckpt_path: run/checkpoints/bset.ckpt\n")
    with pytest.raises(CheckpointError, match="There is no such checkpoint"):
        check_places("fit", ["--config", "fit.yaml"])


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_what_is_no_checkpoint(command: str) -> None:
    for path, what in (("run", "a folder with checkpoints in it"), ("model", "an empty folder"), ("notes.txt", "text")):
        with pytest.raises(CheckpointError, match=f"is no checkpoint of a Trainer(.|\\n)*{what}"):
            check_places(command, ["--ckpt_path", path])
    check_places(command, ["--ckpt_path", "shards"])
    # A plugin of the Trainer may have written it.
    check_places(command, ["--ckpt_path", "notes.txt", "--weights_only", "false"])
    check_places(command, ["--ckpt_path", "notes.txt", "--pera", "null"])


def test_fit_cannot_go_on_from_an_adapter() -> None:
    for command in ("validate", "test", "predict"):
        check_checkpoint(command, "run/adapter")
    with pytest.raises(CheckpointError, match=r"to go on with its fit, name run/checkpoints/best\.ckpt"):
        check_checkpoint("fit", "run/adapter")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit", [*BOTH, "--model.pretrained", "./model", "--data.train_files", "rws.jsonl"]),
        ("fit", [*BOTH, "--model.pretrained", "./model", "--data.train_files", "rows.jsonl", "--ckpt_path", "run"]),
        ("test", [*BOTH, "--ckpt_path", "model"]),
        ("generate", ["--adapter", "model", "--prompt", "a"]),
        ("diff", ["run/adapter", "model"]),
        ("consolidate", ["--checkpoint", "run/adapter", "--out", "out"]),
    ],
)
def test_nothing_heavy_is_imported(command: str, words: list[str]) -> None:
    run = f"from pera_lightning.cli.commands import command_named; command_named({command!r}).run({words!r})"
    assert "\n  fix: " in run_lightly(run)
