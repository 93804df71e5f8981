"""What `estimate` answers: whether a fit fits on cards, what it needs part by part, and the largest that would fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pera_lightning.analysis.memory import CONTEXT, GB, SLACK, Growth, HeldMemory, needed
from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
from pera_lightning.plain_table import PlainTable

SEARCHED = 1 << 20
"""Batches and lengths beyond are not told apart."""


@dataclass(frozen=True)
class Growths:
    """How the bytes of a step grow with its length, and with its rows, beside what is there all the time."""

    held: HeldMemory
    length: Growth
    batch: Growth


def growths_of(fit: FitOnMeta, checkpointing: bool) -> Growths:
    """Measure how a step grows, with or without checkpointing."""
    rows, length, in_one_row = fit.options.batch_size, fit.options.length, fit.options.in_one_row

    def peaks(batch_size: int, length: int) -> tuple[int, ...]:
        return fit.step(checkpointing, batch_size, length).peaks

    # The smallest batch that is computed as larger ones are: a single row has no padding and needs no mask.
    others = rows if fit.is_masked(rows) == fit.is_masked(2) else 2
    return Growths(
        fit.held(checkpointing),
        Growth.through([(times * length, peaks(rows, times * length)) for times in (1, 4, 16)]),
        # In one row attention grows with the square of their number.
        Growth.through(
            [(times * others, peaks(times * others, length)) for times in ((1, 4, 16) if in_one_row else (1, 8))]
        ),
    )


def answers(fit: FitOnMeta, cards: Sequence[float]) -> list[str]:
    """A line for each card: whether the fit as it is configured fits."""
    options, checkpointing = fit.options, fit.options.gradient_checkpointing
    step = fit.step(checkpointing, options.batch_size, options.length).peak
    bytes_needed = needed(fit.held(checkpointing), max(step, fit.validation_peak(checkpointing)))
    # Rounded up: 8.04 of 8.0 GB must not look like a fit.
    size = math.ceil(10 * bytes_needed / GB) / 10
    return [
        f"fits in {card:g} GB: {'yes' if bytes_needed <= card * GB else 'no'}, {size:.1f} of {card:.1f} GB"
        for card in cards
    ]


def parts_table(fit: FitOnMeta) -> PlainTable:
    """What a step of the fit as it is configured needs, part by part."""
    options, checkpointing = fit.options, fit.options.gradient_checkpointing
    held, step = fit.held(checkpointing), fit.step(checkpointing, options.batch_size, options.length)
    dtype = str(options.dtype).removeprefix("torch.")
    stored = dtype if options.quantization is None else f"{options.quantization}, the rest {dtype}"
    table = PlainTable(
        title=f"{options.source.name}: {options.batch_size} rows of {options.length} tokens"
        f"{' end to end' if options.in_one_row else ''}, {options.attention} attention",
        caption="GB of 2^30 bytes. Counted for batches as long as they may be, in which every token is to be learnt.",
    )
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("known from")
    rows: list[tuple[str, float, str]] = [
        (f"base: {stored}", held.base, "counting"),
        ("adapter, and modules saved whole", held.trained, "counting"),
        (f"their gradients{', and DDP buckets' if options.reduces_gradients else ''}", held.gradients, "counting"),
        (f"optimizer: {options.optimizer}", held.optimizer, "counting"),
        (f"activations, checkpointing {'on' if checkpointing else 'off'}", step.kept, "a step on torch's meta device"),
        *_offloaded_row(fit),
        ("working memory at the peak", step.peak - step.kept, "a step on torch's meta device"),
        ("  at another time: logits", step.loss, "a step on torch's meta device"),
        ("  within: largest expansion K(m+n)", fit.largest_expansion(), "counting"),
        ("  within: largest weight unpacked", fit.largest_unpacked(), "counting"),
        ("lost between blocks", SLACK * step.peak, f"rule of thumb: {SLACK:.0%} of the step"),
        ("CUDA context and kernels", CONTEXT, "rule of thumb"),
    ]
    for name, size, known in rows:
        table.add_row(name, f"{size / GB:,.3f}", known, style="dim" if name.startswith(" ") else None)
    table.add_section()
    for name, size in (
        ("a training step needs", step.peak),
        ("a validation step needs", fit.validation_peak(checkpointing)),
    ):
        if size > 0:
            table.add_row(name, f"{needed(held, size) / GB:,.3f}", "")
    return table


def _offloaded_row(fit: FitOnMeta) -> list[tuple[str, float, str]]:
    options = fit.options
    if not options.activation_offloading:
        return []
    size = fit.offloaded(options.gradient_checkpointing, options.batch_size, options.length)
    return [("  in pinned CPU memory instead", size, "a step on torch's meta device")]


def cards_table(fit: FitOnMeta, growths: dict[bool, Growths], cards: Sequence[float]) -> PlainTable:
    """The largest batch and the largest length that fit on cards, with and without checkpointing."""
    uncounted = "the display's share of a card is not counted"
    if fit.options.activation_offloading:
        uncounted += ", nor the CPU memory that offloaded activations take"
    table = PlainTable(title="Training steps that fit", caption=f"GB of 2^30 bytes; {uncounted}.")
    table.add_column("card")
    for what in (f"largest batch at {fit.options.length} tokens", f"largest length at batch {fit.options.batch_size}"):
        for checkpointing in (True, False):
            table.add_column(f"{what}, checkpointing {'on' if checkpointing else 'off'}", justify="right")
    for card in cards:
        batches = [_largest_batch(fit, growths[checkpointing], card) for checkpointing in (True, False)]
        lengths = [_largest_length(fit, growths[checkpointing], card) for checkpointing in (True, False)]
        table.add_row(f"{card:g} GB", *batches, *lengths)
    return table


def _largest_batch(fit: FitOnMeta, growths: Growths, card: float) -> str:
    def fits(rows: int) -> bool:
        own = rows == fit.options.batch_size
        peak = growths.length.at(fit.options.length) if own else growths.batch.at(rows)
        return needed(growths.held, peak) <= card * GB

    return _told(_largest(fits, SEARCHED), SEARCHED, "")


def _largest_length(fit: FitOnMeta, growths: Growths, card: float) -> str:
    def fits(length: int) -> bool:
        return needed(growths.held, growths.length.at(length)) <= card * GB

    limit = fit.options.longest or SEARCHED
    return _told(_largest(fits, limit), limit, " (the model's longest)" if fit.options.longest else "")


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, 0 if none does; whatever is smaller than one that fits does too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _told(number: int, limit: int, at_limit: str) -> str:
    return "none" if number == 0 else f"{number:,}{at_limit if number == limit else ''}"
