"""The compatibility tables: outcomes of tests -> docs/compatibility.md."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.compatibility.steps import REMARKS, STEPS, UNTRIED, steps_of
from tests.support.model_settings import TOO_LARGE
from tests.support.model_types import KINDS, ModelType
from tests.support.zoo import CHECKS, Entry

Outcomes = Mapping[tuple[str, str], str]
"""(name of the model, check) -> "" if it works, else the first line of the error it is refused with."""

INTRODUCTION = """# Which models work

Written by the tests in `tests/compatibility/` when all of them have passed (`make compatibility`), and compared with
them in every full run of the tests with the same versions: no cell is filled in by hand. The models are tiny and
random, so the tables are about whether an architecture works, not about quality; all runs are on the CPU, with
{versions}.

"refused" is an error raised before anything is changed; its first line is the footnote. Where injecting is refused
there is nothing else to do ("-").

## Some models, in depth

"yes" means:

- **inject**: the outputs are those of the frozen base, bit by bit, nothing but adapters is trainable, every adapter
  takes part in the outputs, and removing the adapters brings back the outputs, modules and flags;
- **train**: one optimizer step changes every adapter and not a bit of the base;
- **save/load**: a trained adapter loaded into a fresh copy of the model gives the same outputs, bit by bit;
- **merge**: the merged model computes what the adapted one did, up to rounding (float32);
- **compile**: under `torch.compile` (backend `aot_eager`) outputs and gradients are those of the plain run;
- **4-bit**: the same as *train* over `quantize_model(model, "nf4")`.

Models of torchvision and timm are not in the table: the tests do not install them.
"""
SWEEP = """
## Every type of model that transformers registers

{tried} types of model, with `target_modules: all-linear`. "yes" means:

- **inject**: the outputs are those of the frozen base, bit by bit;
- **train**: the gradients of the adapter are, to 1e-4, those of plain layers with the changed weights, and an optimizer
  step leaves every bit of the base as it was. The footnote names the modules with layers that this loss sends no
  gradient to, because the model does not call them for these inputs (vision towers without an image, cross-attention
  without an encoder, poolers) or only picks by what they compute (indexers of sparse attention, experts that no token
  reached);
- **save/load**: the adapter loaded into a fresh copy of the model gives the same outputs, bit by bit;
- **LoRA**: PEFT loads `export_lora(model, folder)` without leaving anything out, and computes what the adapter does;
- **merged files**: `export_merged` writes a model that transformers loads and that computes what the adapter does;
- **merge**: so does the model after `merge_adapter(model)`, in memory;
- **pack**: packed rows of 13, 9 and 4 tokens give the loss of padded ones to 1e-5 and its gradient to 1e-4. Only where
  `PeraCausalLM` trains the type.

Outputs may differ by 1e-4 of their size (float32), where the adapter changes them by at least ten times as much.
"""


def render(entries: Sequence[Entry], types: Sequence[ModelType], outcomes: Outcomes) -> str:
    """The whole page."""
    footnotes: list[str] = []
    head = [_line(["model", *CHECKS]), _line(["---"] * (len(CHECKS) + 1))]
    rows = [_row(entry, outcomes, footnotes) for entry in entries]
    tried = [entry for entry in types if (entry.name, UNTRIED) not in outcomes]
    sweep = SWEEP.format(tried=len(tried)).splitlines()
    for kind in KINDS:
        sweep += _types([entry for entry in tried if entry.kind is kind], outcomes, footnotes)
    sweep += _untried(types, outcomes)
    notes = [f"[^{number}]: {text}" for number, text in enumerate(footnotes, 1)]
    introduction = INTRODUCTION.format(versions=versions())
    return "\n".join([introduction, *head, *rows, *sweep, "", *notes]) + "\n"


def versions() -> str:
    """What the outcomes depend on, with versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "peft"))


def complete(entries: Sequence[Entry], types: Sequence[ModelType], outcomes: Outcomes) -> bool:
    """Whether every test of the tables ran and passed."""
    deep = all((entry.name, check) in outcomes for entry in entries for check in entry.checks)
    return deep and all((entry.name, UNTRIED) in outcomes or (entry.name, STEPS[0]) in outcomes for entry in types)


def compare(
    entries: Sequence[Entry], types: Sequence[ModelType], outcomes: Outcomes, page: Path, *, write: bool
) -> str | None:
    """Compare the page with the outcomes, or write it.

    Returns:
        What is wrong, None if nothing is. Outcomes of a part of the tests, or with other versions, say nothing about
        the page.
    """
    if not complete(entries, types, outcomes):
        return f"{page.name} was not written: not every test of the tables ran and passed" if write else None
    text = render(entries, types, outcomes)
    found = page.read_text(encoding="utf-8") if page.is_file() else ""
    if write:
        page.write_text(text, encoding="utf-8")
    elif versions() in found and found != text:
        return f"docs/{page.name} does not say what the tests found: run make compatibility"
    return None


def _row(entry: Entry, outcomes: Outcomes, footnotes: list[str]) -> str:
    name = entry.name + (_mark(entry.note, footnotes) if entry.note else "")
    return _line([name, *(_cell(entry.name, check, outcomes, footnotes) for check in CHECKS)])


def _types(types: Sequence[ModelType], outcomes: Outcomes, footnotes: list[str]) -> list[str]:
    """The table of the types of one kind."""
    if not types:
        return []
    steps = steps_of(types[0])
    lines = ["", f"### {types[0].kind.name}", "", _line(["type", *steps]), _line(["---"] * (len(steps) + 1))]
    for entry in types:
        cells = {step: _cell(entry.name, step, outcomes, footnotes) for step in steps}
        remarks = outcomes.get((entry.name, REMARKS))
        if remarks:
            cells["train"] += _mark(remarks, footnotes)
        lines.append(_line([f"`{entry.name}`", *cells.values()]))
    return lines


def _untried(types: Sequence[ModelType], outcomes: Outcomes) -> list[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in types:
        if (entry.name, UNTRIED) in outcomes:
            reasons[outcomes[entry.name, UNTRIED]].append(entry.name)
    reasons["No settings of the tests make it tiny."] += TOO_LARGE
    head = ["", "### Not tried", "", "The tiny model of these types does not run without an adapter either:", ""]
    return [*head, *(f"- {', '.join(f'`{name}`' for name in names)}: {why}" for why, names in reasons.items())]


def _cell(name: str, check: str, outcomes: Outcomes, footnotes: list[str]) -> str:
    if (name, check) not in outcomes:
        return "-"
    refused = outcomes[name, check]
    return f"refused{_mark(refused, footnotes)}" if refused else "yes"


def _mark(text: str, footnotes: list[str]) -> str:
    if text not in footnotes:
        footnotes.append(text)
    return f"[^{footnotes.index(text) + 1}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
