"""What a tool is to read is looked for before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pera_lightning.cli.options.given import given_options, unnamed_words
from pera_lightning.cli.options.tool_places import check_tool_places, task_names
from pera_lightning.errors import AdapterFileError, CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what tools read."""
    for name in ("model", "tasks", "run/adapter", "run/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("rows.jsonl", "model/config.json", "model/model.safetensors", "run/checkpoints/best.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "run/adapter/adapter_config.json").write_text('{"peft_type": "PERA"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*words: str) -> None:
    check_tool_places(given_options(words), unnamed_words(words))


def test_an_adapter() -> None:
    check("--adapter", "run/adapter")
    check("--adapter=s3://bucket/adapter")
    with pytest.raises(AdapterFileError, match=r"did you mean run/adapter\?"):
        check("--adapter", "run/adaptor")
    with pytest.raises(AdapterFileError, match=r"consolidate --checkpoint run/checkpoints/best\.ckpt"):
        check("--adapter", "run/checkpoints/best.ckpt")
    with pytest.raises(AdapterFileError, match="model, which is a whole model"):
        check("--adapter", "model")


def test_adapters_without_a_name() -> None:
    check("run/adapter", "run/adapter", "--config", "{}")
    with pytest.raises(AdapterFileError, match=r"name run/adapter"):
        check("run/adapter", "run")


def test_a_base() -> None:
    check("--base", "model")
    with pytest.raises(ConfigError, match=r"did you mean model\?"):
        check("--base", "./modle")


def test_a_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean run/checkpoints/best\.ckpt\?"):
        check("--checkpoint", "run/checkpoints/bset.ckpt")
    with pytest.raises(CheckpointError, match="an empty file"):
        check("--checkpoint", "run/checkpoints/best.ckpt")


@pytest.mark.parametrize(
    "words", [("--tasks", "./task"), ("--data", "task"), ("--rows", "rws.jsonl"), ("--folder=run/adaptor",)]
)
def test_files_and_folders(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"does not exist(.|\n)*did you mean (tasks|rows|run/adapter)"):
        check(*words)


def test_names_of_tasks() -> None:
    # Found out by lm-eval, where it is installed: a task may have any name.
    check("--tasks", "task")
    assert task_names("piqa, gsm8k,") == ["piqa", "gsm8k"]
    assert [name for name in ("tasks", "./x", "a/b", "~x", "s3://bucket/x") if task_names(name)] == []


def test_what_is_not_looked_for() -> None:
    check("--tasks", "tasks", "--rows", "rows.jsonl", "--base", "org/model", "--folder", "s3://bucket/adapter")
