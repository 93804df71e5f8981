"""Words where numbers belong, and choices that there are not, are told before anything is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pera_lightning.cli.options.checked import check_trainer_options
from pera_lightning.cli.options.given import Given
from pera_lightning.cli.options.signatures import Parameter
from pera_lightning.cli.options.values import check_values
from pera_lightning.errors import ConfigError
from tests.cli.test_main import run

BOTH = ("--model", "PeraCausalLM", "--data", "InstructionDataModule")


def refused(annotation: str, value: str | None) -> bool:
    try:
        check_values([Given("x", value, "--x", is_word=True)], {"x": Parameter(annotation)})
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", ("4", "-4", "4_000", "1e3"), ("four", "[4]", "", "true")),
        ("float", ("4", "4e-3", "1.0E-3", "inf", ".5"), ("fast", "1,5", "null")),
        ("int | None", ("4", "null", "~", ""), ("none", "None of it")),
        ("bool", ("true", "False", "yes", "off"), ("maybe", "1.5")),
        ("Literal['a', 'b'] | float", ("a", "0.5"), ("c", "A")),
        ("Literal[1, 2]", ("1",), ("3", "one")),
        ("Optional[Union[int, float]]", ("1", "0.5", "null"), ("all",)),
        # What else there may be is the parser's to know.
        ("str | int", ("anything",), ()),
        ("Sequence[int]", ("anything",), ()),
        ("", ("anything",), ()),
        ("int", ("${oc.env:RANK}",), ()),
    ],
)
def test_kinds(annotation: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    assert [value for value in (None, *right) if refused(annotation, value)] == []
    assert [value for value in wrong if not refused(annotation, value)] == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--pera.rank", "eight"), "--pera.rank eight\n"),
        (("--model.init_args.learning_rate=fast",), "expected: a number"),
        (("--model.gradient_checkpointing", "maybe"), "expected: true or false"),
        (("--model.dtype", "bfloat61"), "did you mean bfloat16 or"),
        (("--data.batch_size", "[4]"), "expected: a whole number"),
        (("--trainer.max_epochs", "some"), "expected: a whole number"),
    ],
)
def test_of_a_fit(words: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_trainer_options("fit", (*BOTH, *words))
    assert wanted in str(caught.value)


def test_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("pera:\n  rank: eight\n  order: 2\n")
    with pytest.raises(ConfigError, match=r"pera.rank = eight \(.*fit.yaml, line 2\)"):
        check_trainer_options("fit", ("--config", str(path), *BOTH))


def test_of_a_tool(tmp_path: Path) -> None:
    printed = run("export", "--adapter", tmp_path, "--out", "x", "--to", "merge", folder=tmp_path, ok=False)
    assert "did you mean merged?" in printed
