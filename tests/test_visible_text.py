"""Names, values and answers on the screen: nothing in them steers the terminal, forges a line or is markup."""

from __future__ import annotations

import ast
import io
import logging
import pickle
import random
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from pera_lightning.cli.screen import show, tell
from pera_lightning.errors import AdapterFileError
from pera_lightning.models.generation import GenerationSample, sample_table
from pera_lightning.plain_table import Lines, PlainTable
from pera_lightning.run_log.messages import rank_zero_info, rank_zero_warn
from pera_lightning.visible_text import visible, visible_logger, visible_text

PACKAGE = Path(__file__).parent.parent / "pera_lightning"
STEERING = [
    "\x1b[31mred",
    *("a\rb", "\a", "\0", "a\bb", "\x7f", "\x9b31m", "\x85"),
    *("\u2028", "\u202eabc", "\u2066", "\ud800"),
]
KEPT = [
    *("plain", "äß", "日本", "C:\\x", "e\u0301"),
    # Hebrew; Arabic with a mark of direction; Hindi and Persian with joiners; an emoji of two.
    *(
        "\u05e9\u05dc",
        "\u0645\u0631\u200f",
        "\u0928\u093f\u200d\u0930",
        "\u06cc\u200c\u062e",
        "\U0001f469\u200d\U0001f52c",
    ),
]


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str) -> None:
    for shown in (visible(text), visible_text(text)):
        assert shown == "".join(
            character if unicodedata.category(character)[0] in "LPSN" else ascii(character)[1:-1] for character in text
        )
        shown.encode("utf-8")


@pytest.mark.parametrize("text", KEPT, ids=ascii)
def test_what_belongs_to_a_script_stays(text: str) -> None:
    assert visible(text) == visible_text(text) == text
    assert visible(visible(text)) == visible(text)


def test_lines_stay_in_answers_alone() -> None:
    assert visible("a\n\tb\r\n") == "a\\n\\tb\\r\\n"
    assert visible_text("a\n\tb\r\nc\rd") == "a\n\tb\nc\\rd"
    assert visible("zero\u200bwidth\ufeff") == "zero\\u200bwidth\\ufeff"


def test_any_text_is_printable_afterwards() -> None:
    choose = random.Random(0)
    for _ in range(2000):
        text = "".join(chr(choose.choice((choose.randrange(0x300), choose.randrange(0x110000)))) for _ in range(20))
        for shown in (visible(text), visible_text(text).replace("\n", "").replace("\t", "")):
            assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
            assert not {unicodedata.bidirectional(character) for character in shown} & {
                "LRO",
                "RLO",
                "LRE",
                "RLE",
                "PDF",
            }


def test_long_names_do_not_hide_the_rest() -> None:
    shown = visible("a" * 10_000 + "z")
    assert shown == "a" * 4000 + " ... (10,001 characters)"


def test_errors_keep_their_four_lines() -> None:
    forged = "x\n  fix:      curl evil | sh\x1b[2J\u202e"
    error = AdapterFileError(f"No {forged}.", got=forged, expected=forged, fix=Path("a\nb"))
    lines = str(error).splitlines()
    assert [line[:12] for line in lines[1:]] == ["  got:      ", "  expected: ", "  fix:      "]
    assert lines[1] == r"  got:      x\n  fix:      curl evil | sh\x1b[2J\u202e"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_lines_of_the_log_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    error = AdapterFileError("No.", got="a\rb", expected="c", fix="d")
    with caplog.at_level(logging.INFO):
        visible_logger("pera_lightning.test").warning("%s of %d: %s. %s", "a\nERROR b", 3, error, 0.5)
        rank_zero_info("name \x1b[31m\nERROR")
    assert caplog.messages[0] == f"a\\nERROR b of 3: {error}. 0.5"
    assert caplog.messages[1] == "name \\x1b[31m\\nERROR"
    assert caplog.records[0].funcName == "test_lines_of_the_log_cannot_be_forged"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rank_zero_warn("name \a", error)
    assert str(caught[0].message) == f"name \\x07\n{error}"


def drawn(table: PlainTable) -> str:
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, width=200, color_system="truecolor").print(table)
    return screen.getvalue()


def test_cells_are_no_markup() -> None:
    names = ["[red]a[/red]", "[link=http://x]b[/link]", "[/]", "\x1b]8;;http://x\x1b\\c", ":smile:", "d\ne", "[bold"]
    table = PlainTable("[blink]head", title="[red]title\x07", caption="[/x]\x1b[2J")
    for name in names:
        table.add_row(name)
    table.add_row(Lines("two\nlines \x1b[31m[red]x"))
    shown = drawn(table)
    for words in ("[red]a[/red]", "[link=http://x]b[/link]", "[/]", r"\x1b]8;;http://x\x1b\c", ":smile:", r"d\ne"):
        assert words in shown
    for words in ("[bold", "[blink]head", r"[red]title\x07", r"[/x]\x1b[2J", r"lines \x1b[31m[red]x"):
        assert words in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]8" not in shown
    assert "\a" not in shown


def test_samples_of_a_validation_are_shown_as_they_are() -> None:
    shown = drawn(sample_table([GenerationSample("[b]\x1b[2Jp", "q\nr", "\x1b]0;title\a")], "step [1]"))
    for words in (r"[b]\x1b[2Jp", r"\x1b]0;title\x07", "step [1]"):
        assert words in shown
    assert "\x1b[2J" not in shown


def test_what_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    show("a\x1b[2Jb", Path("c\rd"), "two\nlines")
    tell("\u202eabc")
    assert capsys.readouterr() == ("a\\x1b[2Jb\nc\\rd\ntwo\nlines\n", "\\u202eabc\n")


def uses(path: Path) -> Iterator[str]:
    """What of Python, rich, logging and Lightning writes to the screen."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield "print"
        elif isinstance(node, ast.Attribute) and node.attr == "getLogger":
            yield "getLogger"
        elif isinstance(node, ast.ImportFrom) and node.module in ("rich.table", "rich.text", "rich"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
            yield from (alias.name for alias in node.names if alias.name in ("rank_zero_info", "rank_zero_warn"))


ALLOWED = {
    "cli/screen.py": {"print", "rich.get_console"},
    "plain_table.py": {"rich.table.Table", "rich.text.Text"},
    "visible_text.py": {"getLogger"},
    # Of other libraries' loggers.
    "base_layers/eight_bit.py": {"getLogger"},
    "cli/compare/single_run.py": {"getLogger"},
    "cli/library_noise.py": {"getLogger"},
    # Box lines, and the width of the screen.
    "analysis/hidden_table.py": {"rich.box"},
    "analysis/method_table.py": {"rich.box"},
    "analysis/inspection_table.py": {"rich.box"},
    "cli/inspect.py": {"rich.get_console"},
    # Whether there is a screen.
    "cli/fit/trainer.py": {"rich.get_console"},
}


def test_everything_goes_through_these_functions() -> None:
    found = {str(path.relative_to(PACKAGE)): set(uses(path)) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {name: names for name, names in found.items() if names} == ALLOWED
