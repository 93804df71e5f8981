"""Every command of the README and of the site is parsed as a shell and then the command itself would; nothing runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser, capture_parser
from torch.distributed.run import get_args_parser

from pera_lightning.cli import commands as own
from pera_lightning.cli.commands import COMMANDS, TOOLS, TRAINING
from pera_lightning.cli.fit.trainer import PeraCLI, make_cli
from pera_lightning.cli.options.help_pages import trainer_help
from tests.conftest import ROOT
from tests.docs.fences import PAGES, Fence, code_in_text, fences

# Servers and other programs of others, which are not installed.
FOREIGN = {"vllm", "curl", "llama-cli", "llama-server", "sglang.launch_server"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


class Parsing(PeraCLI):
    """Keeps its parser and ends there."""

    made: ArgumentParser

    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        Parsing.made = parser
        raise Made


class Made(Exception):
    pass


@cache
def parser_of_training() -> ArgumentParser:
    with pytest.raises(Made):
        make_cli(Parsing, ["fit"])
    return Parsing.made


def parse_own(words: list[str]) -> None:
    """The words after `pera_lightning`."""
    name, rest = words[0], words[1:]
    assert name in COMMANDS, name
    if name in ("compare", "estimate"):
        _, rest = import_module(f"pera_lightning.cli.{name}.command")._parser().parse_known_args(rest)
        name = "fit"
    if name in TRAINING and trainer_help(name, rest) is None:
        parser_of_training().parse_args([name, *rest])
    elif name in TOOLS:
        capture_parser(lambda: TOOLS[name].run(rest)).parse_args(rest)


def parse_make(words: list[str]) -> None:
    for word in words:
        assert f"\n{word}:" in MAKEFILE, word


def parse_pip(words: list[str]) -> None:
    for word in words[1:] if words[0] == "install" else ():
        extras = re.search(r"\[(.*)\]", word)
        assert extras is None or set(extras[1].split(",")) <= EXTRAS.keys(), word


def parse_torchrun(words: list[str]) -> None:
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "pera_lightning")
    parse_own(parsed.training_script_args)


def parse_python(words: list[str]) -> None:
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
    elif words[1] == "pera_lightning":
        parse_own(words[2:])
    else:
        assert words[1] in FOREIGN or find_spec(words[1]) is not None, words[1]


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "pera_lightning": parse_own,
    "make": parse_make,
    "pip": parse_pip,
    "torchrun": parse_torchrun,
    "python": parse_python,
}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without variables set before it and where its output goes."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        words = words[: words.index(">")] if ">" in words else words
        if words:
            yield words


def parse(words: list[str]) -> None:
    if words[0] not in PROGRAMS:
        assert words[0] in FOREIGN, words
    elif "--print_config" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            PROGRAMS[words[0]](words[1:])
    else:
        PROGRAMS[words[0]](words[1:])


@pytest.mark.parametrize("block", fences("bash"), ids=str)
def test_commands_can_be_parsed(block: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(own, "check_tool_places", lambda *_: None)  # there is none
    text = block.text
    for number, config in enumerate(other for other in fences("yaml") if other.page == block.page):
        (tmp_path / f"{number}.yaml").write_text(config.text, encoding="utf-8")
        text = text.replace("--config my.yaml", f"--config {tmp_path}/{number}.yaml")
    for words in commands(text):
        parse(words)


@pytest.mark.parametrize("block", fences("yaml"), ids=str)
def test_yaml_is_a_config_of_fit(block: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "my.yaml").write_text(block.text, encoding="utf-8")
    parse_own(["fit", "--config", f"{tmp_path}/my.yaml"])


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_commands_in_the_text_exist(page: Path) -> None:
    for code in code_in_text(page):
        words = code.split()
        if words[:1] == ["make"] and len(words) > 1:
            parse_make(words[1:2])
        if words[:3] == ["python", "-m", "pera_lightning"]:
            words = words[2:]
        if words[:1] == ["pera_lightning"] and len(words) > 1 and words[1].islower():
            assert words[1] in COMMANDS, code
        if words[:1] == ["pip"]:
            parse_pip(shlex.split(code)[1:])


@pytest.mark.parametrize("block", fences(""), ids=str)
def test_code_says_which_language_it_is(block: Fence) -> None:
    """Or no test would look at it."""
    assert not re.search(r"^(import|from|pip|make|python|pera_lightning) ", block.text, flags=re.MULTILINE)


def test_no_other_language_is_left_out() -> None:
    known = {"", "bash", "bibtex", "python", "text", "yaml"}
    starts = [line for page in PAGES for line in re.findall(r"^\s*```(\w*)", page.read_text("utf-8"), re.MULTILINE)]
    assert set(starts) <= known
