"""How things are measured: exact bytes, and ratios of times taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def medians(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each function; they take turns, after one call each to warm up."""
    times = _in_turns(functions, repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(functions: Mapping[str, Callable[[], Any]], repeats: int, to: str) -> dict[str, float]:
    """Per function, the median of its time over that of the function `to` in the same round."""
    times = _in_turns(functions, repeats)
    pairs = {name: zip(values, times[to], strict=True) for name, values in times.items()}
    return {name: statistics.median(one / other for one, other in pair) for name, pair in pairs.items()}


def _in_turns(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass and that are no parameters. Exact."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # An alias keeps the storage alive; the tensor itself, if an output, would keep its own graph alive for ever.
        return value.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = forward()
    # Alive until here: a storage freed early could give its address to another one.
    del result
    return sum(kept.values())


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most memory that tensors made within the function take at one time. Exact."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
