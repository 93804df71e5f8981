"""The compatibility table: outcomes of tests -> docs/compatibility.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.zoo import CHECKS, Entry

Outcomes = Mapping[tuple[str, str], str]
"""(name of the model, check) -> "" if it works, else the first line of the error it is refused with."""

INTRODUCTION = """# Which models work

Written by the tests in `tests/compatibility/` when all of them have passed (`make compatibility`), and compared with
them in every full run of the tests: no cell is filled in by hand. The models are tiny and random, so the table is about
whether an architecture works, not about quality; all runs are on the CPU. "yes" means:

- **inject**: the outputs are those of the frozen base, bit by bit, nothing but adapters is trainable, every adapter
  takes part in the outputs, and removing the adapters brings back the outputs, modules and flags;
- **train**: one optimizer step changes every adapter and not a bit of the base;
- **save/load**: a trained adapter loaded into a fresh copy of the model gives the same outputs, bit by bit;
- **merge**: the merged model computes what the adapted one did, up to rounding (float32);
- **compile**: under `torch.compile` (backend `aot_eager`) outputs and gradients are those of the plain run;
- **4-bit**: the same as *train* over `quantize_model(model, "nf4")`.

"refused" is an error raised before anything is changed; its first line is the footnote. Where injecting is refused
there is nothing else to do ("-"). Models of torchvision and timm are not in the table: the tests do not install them.
"""


def render(entries: Sequence[Entry], outcomes: Outcomes) -> str:
    """The whole page."""
    footnotes: list[str] = []
    rows = [_row(entry, outcomes, footnotes) for entry in entries]
    head = [_line(["model", *CHECKS]), _line(["---"] * (len(CHECKS) + 1))]
    notes = [f"[^{number}]: {text}" for number, text in enumerate(footnotes, 1)]
    return "\n".join([INTRODUCTION, *head, *rows, "", *notes]) + "\n"


def complete(entries: Sequence[Entry], outcomes: Outcomes) -> bool:
    """Whether every test of the table ran and passed."""
    return all((entry.name, check) in outcomes for entry in entries for check in entry.checks)


def compare(entries: Sequence[Entry], outcomes: Outcomes, page: Path, *, write: bool) -> str | None:
    """Compare the page with the outcomes, or write it.

    Returns:
        What is wrong, None if nothing is. Outcomes of a part of the tests say nothing about the page.
    """
    if not complete(entries, outcomes):
        return f"{page.name} was not written: not every test of the table ran and passed" if write else None
    text = render(entries, outcomes)
    if write:
        page.write_text(text, encoding="utf-8")
    elif not page.is_file() or page.read_text(encoding="utf-8") != text:
        return f"docs/{page.name} does not say what the tests found: run make compatibility"
    return None


def _row(entry: Entry, outcomes: Outcomes, footnotes: list[str]) -> str:
    name = entry.name + (_mark(entry.note, footnotes) if entry.note else "")
    return _line([name, *(_cell(entry, check, outcomes, footnotes) for check in CHECKS)])


def _cell(entry: Entry, check: str, outcomes: Outcomes, footnotes: list[str]) -> str:
    if check not in entry.checks:
        return "-"
    refused = outcomes[entry.name, check]
    return f"refused{_mark(refused, footnotes)}" if refused else "yes"


def _mark(text: str, footnotes: list[str]) -> str:
    if text not in footnotes:
        footnotes.append(text)
    return f"[^{footnotes.index(text) + 1}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
