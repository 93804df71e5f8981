"""What the parser objects to, in the form of all errors; flags that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import auto_cli

from pera_lightning.cli.options.parser import OptionParser, as_config_error, with_flags
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.errors import ConfigError


def tool(
    adapter: str,
    count: int = 3,
    to: Literal["one", "two"] = "one",
    names: Sequence[str] | None = None,
    sizes: list[int] | None = None,
    ranks: dict[str, int] | None = None,
    check: bool = True,
) -> tuple[object, ...]:
    return adapter, count, to, names, sizes, ranks, check


def run(*words: str, positional: bool = False) -> tuple[object, ...]:
    return auto_cli(  # type: ignore[no-any-return]
        tool, args=list(words), as_positional=positional, prog="pera_lightning tool", parser_class=OptionParser
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("Options are missing.", "no --adapter", "`pera_lightning tool --help`")),
        (("--adapter", "x", "--count", "three"), ("count = three", "a whole number")),
        (("--adapter", "x", "--to", "three"), ("to = three", "one of one, two")),
        (("--adapter", "x", "--names", "a,b"), ("a list: [a, b]", "a list is written [a,b]")),
        (("--adapter", "x", "--sizes", "1,2"), ("a list: [a, b]", "a list is written [1,2]")),
        (("--adapter", "x", "--ranks", "q:4"), ("ranks = q:4", "a mapping: {name: value}")),
        (("--adapter", "x", "--check", "perhaps"), ("check = perhaps", "true or false")),
        (("--adapter",), ("An option has no value.", "--adapter VALUE")),
        (("--adapter", "x", "more"), ("There is no such option.", "more")),
    ],
)
def test_messages(words: tuple[str, ...], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*words)
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert len(text.splitlines()) == 4
    assert capsys.readouterr().err == ""


def test_words_without_a_name_are_asked_for_as_such() -> None:
    with pytest.raises(ConfigError, match="no ADAPTER"):
        run(positional=True)


def test_what_is_right_is_taken() -> None:
    assert run("--adapter", "x", "--names", "[a,b]") == ("x", 3, "one", ["a", "b"], None, None, True)


def test_places_in_files(tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("pera:\n  rank: four\n")
    message = "Parser key \"pera.rank\":\n  Errors:\n    - Expected a <class 'int'>\n  Given value: four"
    assert f"four ({path}, line 2)" in str(as_config_error(message, ["fit", "--config", str(path)], set(), "help"))


@pytest.mark.parametrize(
    ("message", "page"),
    [
        ("argument --trainer.max_epochs: expected one argument", "--trainer.help"),
        ("Parser key \"pera.rank\":\n  Expected a <class 'int'>. Got value: x", "--pera.help"),
        ("Parser key \"ckpt_path\":\n  Expected a <class 'str'>. Got value: 3", "--help"),
    ],
)
def test_the_page_that_explains_the_option_is_named(message: str, page: str) -> None:
    assert f"fix:      `pera_lightning fit {page}`" in str(
        as_config_error(message, [], set(), "`pera_lightning fit --help`")
    )


def test_long_values_are_shortened() -> None:
    message = f"Parser key \"pera.rank\":\n  Expected a <class 'int'>. Got value: {'x' * 5000}"
    assert len(str(as_config_error(message, [], set(), "help"))) < 400


def test_unknown_messages_stay_whole() -> None:
    text = str(as_config_error("something of\n a later version", [], set(), "help"))
    assert "something of a later version" in text


def test_flags_count_as_true() -> None:
    types = {"check": "bool", "model.chunks": "bool", "pera.rank": "int | None", "deep": "bool | None"}
    known = {name: Parameter(annotation) for name, annotation in types.items()}
    given = ["fit", "--check", "--model.init_args.chunks", "--pera.rank", "--deep"]
    assert with_flags(given, known) == [
        "fit", "--check", "true", "--model.init_args.chunks", "true", "--pera.rank", "--deep", "true",
    ]  # fmt: skip
    for words in (["--check", "false"], ["--check=false"], ["--name", "--check"], []):
        assert with_flags(words, known)[: len(words)] == words
    assert with_flags(["--check", "-c", "x"], known) == ["--check", "true", "-c", "x"]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("the following arguments are required: --learning_rates", ("no --learning_rates",)),
        ("argument --seeds: invalid int value: 'x'", ("--seeds cannot", "invalid int value: 'x'")),
        ("the following arguments are required: fit.data, fit.model", ("no --data and no --model",)),
        (
            "Parser key \"model\":\n    - Problem with given class_path 'a.B':\n        Option 'lr' is not accepted\n"
            "  Given value: NestedArg(key='lr', val='3')",
            ("There is no such option.", "model.lr", "an option of a.B"),
        ),
        (
            "Parser key \"trainer.callbacks\":\n    - Problem with given class_path 'pathlib.Path':\n"
            "        Option 'arg' is not accepted",
            (
                "trainer.callbacks.arg (--trainer.callbacks)",
                "an option of pathlib.Path",
                "did you mean args or kwargs?",
            ),
        ),
        (
            "Parser key \"trainer.callbacks\":\n    - Problem with given class_path 'lightning.Callback':\n"
            "        Option 'dirpath' is not accepted",
            ("class_path is missing: no class is named for trainer.callbacks.", "the option dirpath"),
        ),
        (
            "Parser key \"model\":\n  Errors:\n    - Problem with given class_path 'a.B':\n        "
            "Parser key \"rate\":\n          Expected a <class 'float'>. Got value: x\n"
            "    - Expected a <class 'NoneType'>",
            ("model.rate = x", "expected: a number\n"),
        ),
        ("Parser key \"data\":\n Errors:\n - No module named 'a'\n Given value: a.B", ("cannot be imported", "a.B")),
    ],
)
def test_other_messages(message: str, parts: tuple[str, ...]) -> None:
    text = str(as_config_error(message, ["fit"], set(), "help"))
    assert all(part in text for part in parts), text
