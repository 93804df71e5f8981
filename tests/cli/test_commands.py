"""Which commands there are is told at once, also for words that are none."""

from __future__ import annotations

import pytest

from pera_lightning.cli.commands import COMMANDS
from tests.cli.test_main import run
from tests.support.light_starts import run_lightly


def test_a_mistyped_command_names_all_of_them() -> None:
    printed = run("consolidat", ok=False)
    assert "one of consolidate, " in printed
    assert all(name in printed for name in ("chat", "export", "fit", "push", "did you mean consolidate?"))


@pytest.mark.parametrize(
    ("word", "meant"), [("trian", "fit"), ("merge", "export"), ("Fit", "fit"), ("evalaute", "evaluate")]
)
def test_a_command_under_another_name(word: str, meant: str) -> None:
    assert f"did you mean {meant}" in run(word, ok=False)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed(words: tuple[str, ...]) -> None:
    printed = run(*words, ok=bool(words))
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("asked", ["", *COMMANDS])
def test_what_needs_no_model_answers_without_torch(asked: str) -> None:
    """--help and an option that there is not, of each command and of none; a new process each."""
    for word, code in (("--help", 0), ("--nothing.like_it", 1)):
        main = f"from pera_lightning.cli.main import main; sys.argv[1:] = {[*asked.split(), word]}; main()"
        run_lightly(main, code)
