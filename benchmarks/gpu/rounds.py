"""Times of functions that take turns, for as many rounds as the time allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.gpu.card import synchronize

LEAST, MOST = 3, 15
"""Rounds: fewer say nothing, more change nothing."""
Times = dict[str, list[float]]


def in_turns(
    device: torch.device, functions: Mapping[str, Callable[[], Any]], seconds: float, clock: Callable[[], float]
) -> Times:
    """Seconds of each function in each round, the device waited for. They have been called before.

    Args:
        device: Where they compute.
        functions: By name.
        seconds: After these no further round starts; there are at least `LEAST`, and at most `MOST`.
        clock: `time.perf_counter`.
    """
    times: Times = {name: [] for name in functions}
    begin = clock()
    for done in range(MOST):
        if done >= LEAST and clock() - begin > seconds:
            break
        for name, function in functions.items():
            synchronize(device)
            start = clock()
            function()
            synchronize(device)
            times[name].append(clock() - start)
    return times


def timed(device: torch.device, functions: Mapping[str, Callable[[], Any]], seconds: float) -> Times:
    """`in_turns` by the machine's clock."""
    return in_turns(device, functions, seconds, time.perf_counter)


def ratio(times: Times, name: str, to: str) -> float:
    """The median of the ratios of the same round."""
    return round(statistics.median(one / other for one, other in zip(times[name], times[to], strict=True)), 3)


def median(times: Times, name: str) -> float:
    """Median seconds."""
    return round(statistics.median(times[name]), 6)
