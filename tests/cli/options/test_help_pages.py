"""Help read from source names every option with its default, and answers what the parser would."""

from __future__ import annotations

import inspect

import pytest

import pera_lightning
from pera_lightning.cli.commands import COMMANDS, TOOLS
from pera_lightning.cli.options.checked import CLASSES
from pera_lightning.cli.options.help_pages import tool_help, trainer_help
from tests.cli.test_main import run


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_commands(command: str) -> None:
    page = run(command, "--help")
    assert (
        page.index("--pera.help") < page.index("--model.help") < page.index("--data.help") < page.index("--pera.rank")
    )
    for name in inspect.signature(pera_lightning.PeraCallback).parameters:
        assert f"--pera.{name} " in page
    assert "(str|list, default: all-linear)" in " ".join(page.split())
    assert "--trainer.max_epochs" not in page


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in CLASSES.items() for name in names])
def test_classes(group: str, name: str) -> None:
    page = run("fit", f"--{group}.help", name)
    for option in inspect.signature(getattr(pera_lightning, name)).parameters:
        assert option == "options" or f"--{group}.{option} " in page
    assert page.startswith("usage: pera_lightning fit")
    assert page == run("fit", f"--{group}.help", f"pera_lightning.{name}")


def test_the_trainer() -> None:
    page = run("fit", "--trainer.help")
    assert "--trainer.max_epochs MAX_EPOCHS" in page
    assert ":paramref:" not in page


def test_the_first_class_stands_for_all() -> None:
    assert "Others: PeraSequenceClassifier" in run("fit", "--model.help")


@pytest.mark.parametrize(
    "words", [["--model.help", "my.Model"], ["--trainer.logger.help", "CSVLogger"], ["--pera.rank", "3"]]
)
def test_what_only_the_parser_knows(words: list[str]) -> None:
    assert trainer_help("fit", words) is None


def test_the_parser_still_answers() -> None:
    assert "save_dir" in run("fit", "--trainer.logger.help", "CSVLogger")


@pytest.mark.parametrize("name", sorted(set(TOOLS) - {"compare", "estimate"}))
def test_tools(name: str) -> None:
    page = run(name, "--help")
    assert page.startswith(f"usage: pera_lightning {name}")
    assert run(name, "-h") == page
    assert tool_help(f"pera_lightning.cli.{name}", name, [], positional=False) is None
    assert COMMANDS[name].summary
