"""Running a model without its adapter for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pera_lightning.errors import InjectionError
from pera_lightning.injection.names import adapted_layers, adapter_layers
from pera_lightning.injection.saved_modules import marked_modules, memory_of_saved, swap_saved


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context `model` computes exactly what it computed before injection.

    Merged layers are unmerged for the time; modules saved whole get their original values. Everything is as it
    was afterwards, also after an exception.

    Args:
        model: A model with adapters.

    Yields:
        The model itself.

    Raises:
        InjectionError: The model holds no adapter.
    """
    if not any(True for _ in adapted_layers(model)):
        raise InjectionError(
            "There is no adapter to disable.",
            got="a model without adapters",
            expected="a model with adapters",
            fix="inject_adapter(model, config) or load_adapter(model, folder) first",
        )
    layers = [layer for _, layer in adapter_layers(model)]
    if not any(layer.enabled for layer in layers):
        # Inside another adapter_disabled, which brings everything back.
        yield model
        return
    merged = [(layer, layer.merged_into) for layer in layers if layer.merged]
    enabled = [layer for layer in layers if layer.enabled]
    whole = [module for _, module in marked_modules(model)]
    # What was done last is undone first: tied weights hold the values of several layers one upon the other.
    for layer, _ in reversed(merged):
        layer.unmerge()
    for layer in enabled:
        layer.enabled = False
    memory = memory_of_saved(model)
    for module in whole:
        swap_saved(module, memory)
    try:
        yield model
    finally:
        # The other way round, because they may share tensors.
        for module in reversed(whole):
            swap_saved(module, memory)
        for layer in enabled:
            layer.enabled = True
        for layer, into in merged:
            layer.merge(into)
