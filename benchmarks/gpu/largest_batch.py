"""The largest batch whose step fits the card: doubled until memory runs out, then halved in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import card
from benchmarks.gpu.random_models import adapted
from benchmarks.gpu.session import Session
from benchmarks.gpu.step_time import Step

SHARE = 16
"""Bisected until the bounds are a sixteenth of the batch apart."""
KINDS = ("lora", "pera")


def measure(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: LoRA and PERA, on the weights of one base."""
    shape, length, most = settings["shape"], settings["length"], settings["most"]
    session.check_fits(session.architecture(shape), settings["quant"], length)
    base = session.base(shape, settings["quant"])
    figures: dict[str, Any] = {}
    for kind in KINDS:
        model = adapted(base, kind, settings)

        def fits(batch: int, model: Any = model) -> bool:
            return step_fits(session, model, (batch, length))

        deadline = time.perf_counter() + settings["seconds"]
        low, high = bounds(fits, settings["first"], most, lambda deadline=deadline: time.perf_counter() > deadline)
        figures |= {f"largest_{kind}": low, f"fails_{kind}": high}
    lora, pera = figures["largest_lora"], figures["largest_pera"]
    return figures | {"ratio": round(pera / lora, 3) if lora else None}


def bounds(fits: Callable[[int], bool], first: int, most: int, is_late: Callable[[], bool]) -> tuple[int, int | None]:
    """The largest batch that was seen to fit, 0 if none, and the smallest that was not, None if all did.

    Args:
        fits: Whether a step of this batch fits.
        first: Where doubling starts.
        most: No larger one is tried.
        is_late: Whether no further one is to be tried.
    """
    low, high, batch = 0, None, first
    while batch <= most and not is_late():
        if not fits(batch):
            high = batch
            break
        low, batch = batch, 2 * batch
    while high is not None and high - low > max(1, high // SHARE) and not is_late():
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


def step_fits(session: Session, model: Any, batch: tuple[int, int]) -> bool:
    """Whether two steps, the second with the optimizer's states there, run without memory running out."""
    try:
        step = Step(model, batch)
        step()
        step()
        card.synchronize(session.device)
    except Exception as error:
        if not card.ran_out(error):
            raise
        found = False
    else:
        found = True
    # Outside of the handler: its traceback holds the step's tensors.
    step = None
    for parameter in model.parameters():
        parameter.grad = None
    card.release(session.device)
    return found
