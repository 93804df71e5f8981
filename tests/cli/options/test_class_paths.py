"""Options whose class nobody named are told as such, with their place, before anything is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pera_lightning.cli.options.checked import check_trainer_options
from pera_lightning.errors import ConfigError

MODEL, DATA = ("--model", "PeraCausalLM"), ("--data", "TextDataModule")
LOGGER = "trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: x}}}\n"


def config(folder: Path, text: str, name: str = "fit.yaml") -> tuple[str, str]:
    path = folder / name
    path.write_text(text)
    return "--config", str(path)


def message(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_trainer_options("fit", words)
    assert len(str(caught.value).splitlines()) == 4
    return str(caught.value)


@pytest.mark.parametrize("options", ["  init_args:\n    train_files: x\n", "  # as a mapping\n  train_files: x\n"])
def test_data_without_a_class(tmp_path: Path, options: str) -> None:
    text = message(*config(tmp_path, f"model: PeraCausalLM\ndata:\n{options}"))
    assert "class_path is missing: no class is named for data." in text
    assert f"train_files ({tmp_path}/fit.yaml, line 4)" in text
    assert "--data.help" in text


def test_a_model_without_a_class(tmp_path: Path) -> None:
    assert "named for model" in message(*DATA, *config(tmp_path, "model: {init_args: {pretrained: x}}\n"))
    assert "pretrained (--model.init_args.pretrained)" in message(*DATA, "--model.init_args.pretrained", "x")


def test_a_class_counts_from_where_it_stands(tmp_path: Path) -> None:
    options = config(tmp_path, "data: {init_args: {train_files: x}}\n")
    check_trainer_options("fit", [*MODEL, *DATA, *options])
    assert "named for data" in message(*MODEL, *options, *DATA)
    assert "named for data" in message(*MODEL, *DATA, "--data", "null", *options)


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ("logger:\n    init_args: {save_dir: x}", "trainer.logger"),
        ("logger:\n  - init_args: {save_dir: x}", "entry 1 of trainer.logger"),
        ("callbacks:\n  - class_path: X\n  - init_args: {dirpath: x}", "entry 2 of trainer.callbacks"),
        ("callbacks: [{dirpath: x}]", "entry 1 of trainer.callbacks"),
        ("callbacks:\n    init_args: {dirpath: x}", "trainer.callbacks"),
        ("strategy:\n    init_args: {find_unused_parameters: true}", "trainer.strategy"),
        ("profiler:\n    init_args: {dirpath: x}", "trainer.profiler"),
        ("plugins:\n  - init_args: {precision: x}", "entry 1 of trainer.plugins"),
        ("logger: true\n  # later\n  logger: {init_args: {save_dir: x}}", "trainer.logger"),
    ],
)
def test_what_a_trainer_takes(tmp_path: Path, trainer: str, named: str) -> None:
    text = message(*MODEL, *DATA, *config(tmp_path, f"trainer:\n  {trainer}\n"))
    assert f"no class is named for {named}." in text
    assert "fit.yaml, line " in text
    assert "--trainer.help" in text


@pytest.mark.parametrize(
    "text",
    [
        "data:\n  class_path: TextDataModule\n  train_files: x\n",
        "trainer:\n  callbacks:\n  - class_path: LearningRateMonitor\n    logging_interval: x\n",
    ],
)
def test_options_beside_their_class(tmp_path: Path, text: str) -> None:
    found = message(*MODEL, *DATA, *config(tmp_path, text))
    option = text.split()[-2].rstrip(":")
    assert f"{option} beside class_path ({tmp_path}/fit.yaml, line {len(text.splitlines())})" in found
    assert f"put {option} under init_args" in found


@pytest.mark.parametrize(
    "text",
    [
        "data: {init_args: {train_files: x}, class_path: TextDataModule}\n",
        "pera: &c {rank: 4}\ndata:\n  <<: {class_path: TextDataModule}\n  init_args: {train_files: x}\n",
        "data:\n  <<: [{class_path: TextDataModule}]\n  init_args: {train_files: x}\n",
        "trainer: {callbacks: [LearningRateMonitor, {class_path: X, init_args: {y: {z: 1}}}]}\n",
        "trainer: {logger: true}\n",
        "trainer: trainer.yaml\n",
        "model: {class_path: my.Model, init_args: {inner: {class_path: my.Inner, size: 3}}, dict_kwargs: {a: 1}}\n",
    ],
)
def test_what_may_be_right_is_left_alone(tmp_path: Path, text: str) -> None:
    check_trainer_options("fit", [*MODEL, *DATA, *config(tmp_path, text)])


@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.logger.name", "y"),
        ("--trainer.logger+", "CSVLogger", "--trainer.logger.init_args.name", "y"),
        ("--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", "x"),
        ("--data.help",),
    ],
)
def test_words_after_a_class_that_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    check_trainer_options("fit", [*MODEL, *DATA, *config(tmp_path, LOGGER), *words])


def test_words_change_the_last_class_of_a_list(tmp_path: Path) -> None:
    listed = config(tmp_path, "trainer: {callbacks: [{class_path: X, init_args: {y: 1}}]}\n")
    check_trainer_options("fit", [*MODEL, *DATA, *listed, "--trainer.callbacks.init_args.y", "2"])


def test_other_files_may_name_the_class() -> None:
    check_trainer_options("fit", ["--config", "s3://bucket/fit.yaml", "--data.train_files", "x"])
