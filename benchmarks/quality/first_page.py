"""What a user reads first of `docs/RESULTS.md`: the adapters side by side, from the studies of `adapters.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.quality.adapters import ADAPTERS
from benchmarks.quality.pictures import Results, draw_difference
from pera_lightning.analysis.method_comparison import MethodSummary
from pera_lightning.analysis.plots.figure import new_figure

ADVICE = Path(__file__).with_name("advice.md")
PICTURE = "results_adapters.png"
SECTION = """# Which adapter for which purpose?

{advice}
{table}

The first row is LoRA's test loss; the others are differences from it at the same rank, in % of it: mean over seeds
and its 95 % interval by Student's t; below 0 is better. Every method is at its own best learning rate, chosen in
validation; none of them is at an end of what was tried. *Trained* counts the adapters' parameters as a share of LoRA's,
without heads trained whole; *step* is the median time of an optimizer step as a share of LoRA's in the same runs, on a
CPU that did other work besides: read it to a tenth. rsLoRA, DoRA and HiRA are PEFT's own; `peft_lora`, the same
computation as `lora` with other random starts, shows how much of a difference is chance. `full`, `square` and `auto`
(`full_auto` of `compare`) are PERA.

![The adapters side by side]({picture})

The record that this rests on follows, with all runs, how they were made and what they cannot say.

"""


def first_page(results: Sequence[Results]) -> str:
    """The first section of the page.

    Args:
        results: The studies of adapters that have results.
    """
    advice = ADVICE.read_text(encoding="utf-8")
    return SECTION.format(advice=advice, table=table_of_adapters(results), picture=PICTURE)


def table_of_adapters(results: Sequence[Results]) -> str:
    """A row per method, a column per study."""
    columns = ["method", *(f"{_task(found)}, rank {found.study.rank}" for found in results), "trained", "step"]
    lines = [columns, ["---"] * len(columns)]
    there = [{own.method: own for own in found.summaries} for found in results]
    loras = [found.summaries[0] for found in results]
    for method in ADAPTERS:
        pairs = [(lora, own[method]) for lora, own in zip(loras, there, strict=True) if method in own]
        cells = [_share(own[method], lora) if method in own else "-" for lora, own in zip(loras, there, strict=True)]
        sizes = _ratio([own.trainable / lora.trainable for lora, own in pairs])
        lines.append([f"`{method}`", *cells, sizes, _ratio([own.step_ms / lora.step_ms for lora, own in pairs])])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot_adapters(results: Sequence[Results]) -> Figure:
    """The differences of `table_of_adapters`, a panel per study."""
    figure = new_figure(3.4 * len(results), 3.6)
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, found in zip(panels, results, strict=True):
        lora, *others = found.summaries
        for place, summary in enumerate(others):
            draw_difference(axes, summary, 100 / lora.mean, place)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(f"{_task(found)}, rank {found.study.rank}", fontsize="medium")
        axes.set_yticks(range(len(others)), [summary.method for summary in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.grid(alpha=0.3, axis="x")
        axes.set_xlabel("test loss against LoRA's, % (left is better)", fontsize="small")
    return figure


def _task(found: Results) -> str:
    return found.study.task.removesuffix(", adapters")


def _share(summary: MethodSummary, lora: MethodSummary) -> str:
    if summary.method == lora.method:
        return f"{lora.mean:.4f}"
    scale = 100 / lora.mean
    ends = "" if summary.interval is None else f" [{', '.join(f'{scale * end:+.1f}' for end in summary.interval)}]"
    return f"{scale * summary.difference:+.1f} %{ends}"


def _ratio(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
