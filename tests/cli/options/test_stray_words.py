"""A list without brackets and text without quotes are told as such."""

from __future__ import annotations

import pytest

from pera_lightning.cli.commands import COMMANDS
from pera_lightning.cli.options.checked import check_trainer_options
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.cli.options.stray_words import check_stray_words
from pera_lightning.errors import AdapterFileError, ConfigError

KNOWN = {"names": Parameter("str | Sequence[str]"), "prompt": Parameter("str"), "model.sizes": Parameter("list[int]")}


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("--names", "a", "b"), "a list is written --names [a,b]"),
        (("--names=a", "b", "c", "--prompt", "x"), "a list is written --names [a,b,c]"),
        (("--model.init_args.sizes", "1", "-2"), "a list is written --model.init_args.sizes [1,-2]"),
        (("--my.option", "a", "b"), "a list is written --my.option [a,b]"),
        (("--prompt", "What", "now"), "text of several words stands in quotes: --prompt 'What now'"),
        (("fit.yaml",), "--config fit.yaml"),
        (("--config", "a.yaml", "b.yaml"), "--config b.yaml"),
        (("-c", "a.yaml", "b.yaml"), "--config b.yaml"),
    ],
)
def test_words_behind_no_option(words: tuple[str, ...], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_stray_words(words, KNOWN)
    assert fix in str(caught.value)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--names", "[a,b]", "--prompt", "x"),
        ("--prompt=", "--names", "a"),
        ("-h",),
        ("--names", "-4"),
        ("--check",),
    ],
)
def test_what_is_right(words: tuple[str, ...]) -> None:
    check_stray_words(words, KNOWN)


def test_commands() -> None:
    words = ["--model", "PeraCausalLM", "--data", "TextDataModule", "--pera.target_modules", "q_proj", "v_proj"]
    with pytest.raises(ConfigError, match=r"a list is written --pera.target_modules \[q_proj,v_proj\]"):
        check_trainer_options("fit", words)
    with pytest.raises(ConfigError, match="stands in quotes: --prompt 'What now'"):
        COMMANDS["generate"].run(["--adapter", ".", "--prompt", "What", "now"])
    with pytest.raises(AdapterFileError, match="There is no such adapter"):
        COMMANDS["inspect"].run(["--adapter", "nowhere", "--prompts", "one", "another"])
