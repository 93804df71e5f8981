"""Typos are told with what was meant, and where they stand; what may be right is left to the parser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pera_lightning.cli.options.checked import check_trainer_options
from pera_lightning.errors import ConfigError

BOTH = ("--model", "PeraCausalLM", "--data", "TextDataModule")


def message(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_trainer_options("fit", words)
    assert len(str(caught.value).splitlines()) == 4
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--pera.rnak", "4"), "--pera.rank"),
        (("--pera.target_moduls=all-linear",), "--pera.target_modules"),
        (("--trainer.max_epoks", "3"), "--trainer.max_epochs"),
        (("--trainr.max_epochs", "3"), "--trainer.max_epochs"),
        (("--rank", "4"), "--pera.rank"),
        (("--learning_rate", "4"), "--model.learning_rate"),
        (("--max_epochs", "4"), "--trainer.max_epochs"),
        (("--model.lerning_rate", "4"), "--model.learning_rate"),
        (("--model.init_args.warmup_rat", "4", "--model.pretraned=x"), "--model.warmup_ratio"),
        (("--data.batchsize", "4"), "--data.batch_size"),
        (("--chkpt_path", "4"), "--ckpt_path"),
    ],
)
def test_options(words: tuple[str, ...], meant: str) -> None:
    text = message(*BOTH, *words)
    assert f"did you mean {meant}" in text
    assert words[0].partition("=")[0] in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--model", "PeraCausalLm"), "PeraCausalLM"),
        (("--model.class_path=PeraSequenceClasifier",), "PeraSequenceClassifier"),
        (("--data", "pera_lightning.InstructionDatamodule"), "InstructionDataModule"),
    ],
)
def test_classes(words: tuple[str, ...], meant: str) -> None:
    assert f"did you mean {meant}" in message(*words)


def test_places_in_files(tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("trainer:\n  max_epochs: 1\n\npera:\n  rank: 4\n  alpah: 8\n")
    assert f"pera.alpah ({path}, line 6)" in message("--config", str(path))
    path.write_text("model:\n  class_path: PeraCausalLM\n  init_args:\n    pretraned: x\n")
    assert f"model.pretraned ({path}, line 4)" in message(f"--config={path}")
    path.write_text("modell: PeraCausalLM\n")
    assert f"modell ({path}, line 1)" in message("-c", str(path))
    path.write_text("pera:\n\trank: 4\n")
    assert f"{path}, line 2" in message("--config", str(path))
    path.write_bytes(b"pera: \xff\n")
    assert "UTF-8" in message("--config", str(path))


def test_configs_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in message("--config", str(tmp_path / "quickstrt.yaml"))
    assert "a folder" in message("--config", str(tmp_path))
    assert f"did you mean {tmp_path}" in message("--config", str(tmp_path) + "x/quickstart.yaml")


def test_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "63")
    text = message("--config", str(tmp_path / "63"))
    assert "a pipe, to be read only once" in text
    assert '--config "$(COMMAND)"' in text


@pytest.mark.parametrize(
    ("words", "missing"), [((), "--model and no --data"), (BOTH[:2], "no --data"), (BOTH[2:], "no --model")]
)
def test_what_has_to_be_given(words: tuple[str, ...], missing: str) -> None:
    assert missing in message(*words)


@pytest.mark.parametrize(
    "words",
    [
        (
            *BOTH,
            "--pera.rank",
            "4",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.init_args.version",
            "x",
            "--trainer.callbacks+=LearningRateMonitor",
        ),
        (*BOTH, "--pera.rank_pattern.q_proj", "4", "--trainer.max_epoch", "3", "--print_config=skip_null"),
        ("--model", "my.Model", "--model.anything", "3", "--data", "my.Data", "--data.init_args.path", "x"),
        ("--model", "model.yaml", "--model.anything", "3", "--data", "my/data.yaml"),
        ("--help",),
        ("-h",),
        ("--pera.help",),
        ("--model.help", "PeraCausalLM"),
        ("--config", "s3://bucket/fit.yaml"),
        ("--config", '{"model": "PeraCausalLM"}'),
        (*BOTH, "--ckpt_path", "x", "--seed_everything", "1", "--float32_matmul_precision", "high"),
        (*BOTH, "--data.train_files", "[a.txt,b.txt]", "--model.init_args.pretrained=x", "--pera", "null"),
    ],
)
def test_what_may_be_right_is_left_alone(words: tuple[str, ...]) -> None:
    check_trainer_options("fit", words)


def test_shapes_of_yaml(tmp_path: Path) -> None:
    """Anchors, merged mappings, flow style, lists and empty files are no options of other names."""
    path = tmp_path / "fit.yaml"
    path.write_text(
        "x: &small {rank: 4}\n".replace("x:", "pera:")
        + "model: {class_path: PeraCausalLM, init_args: {pretrained: x, <<: {learning_rate: 1}}}\n"
        + "data: {class_path: TextDataModule, init_args: {train_files: [a.txt, {b: 3}]}}\n"
        + "trainer: {callbacks: [{class_path: X, init_args: {y: 3}}], logger: {class_path: CSVLogger}}\n"
    )
    check_trainer_options("fit", ["--config", str(path)])
    path.write_text("")
    check_trainer_options("fit", ["--config", str(path), *BOTH])
