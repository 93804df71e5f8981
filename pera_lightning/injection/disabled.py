"""Running a model without its adapter for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from pera_lightning.concurrency import kept
from pera_lightning.errors import InjectionError
from pera_lightning.injection.saved_modules import marked_modules, memory_of_saved, swap_saved
from pera_lightning.injection.targets.names import adapter_layers, is_adapted


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context `model` computes exactly what it computed before injection.

    Merged layers are unmerged for the time; modules saved whole get their original values. Everything is as it
    was afterwards, also after an exception. Calls that run in other threads are waited for where the model is in an
    `AdapterSet`; with other models, no other thread may compute at the beginning and end.

    Args:
        model: A model with adapters.

    Yields:
        The model itself.

    Raises:
        InjectionError: The model holds no adapter.
    """
    if not is_adapted(model):
        raise InjectionError(
            "There is no adapter to disable.",
            got="a model without adapters",
            expected="a model with adapters",
            fix="inject_adapter(model, config) or load_adapter(model, folder) first",
        )
    # Inside another adapter_disabled it is that one which brings everything back.
    with kept(model, partial(_is_disabled, model), partial(_disable, model)):
        yield model


def _is_disabled(model: nn.Module) -> bool:
    return not any(layer.enabled for _, layer in adapter_layers(model))


def _disable(model: nn.Module) -> Callable[[], None]:
    """Disable what is enabled; returns what enables it again."""
    layers = [layer for _, layer in adapter_layers(model)]
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

    def enable() -> None:
        # The other way round, because they may share tensors.
        for module in reversed(whole):
            swap_saved(module, memory)
        for layer in enabled:
            layer.enabled = True
        for layer, into in merged:
            layer.merge(into)

    return enable
