"""How many weights a model has, and the bytes that they really take, scales of quantised ones included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from pera_lightning.base_layers import base_of
from pera_lightning.injection.targets.names import adapter_layers


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all distinct parameters, buffers and scales of quantised weights."""
    return _distinct_bytes(_tensors(model))


def describe_bytes(model: nn.Module) -> str:
    """`stored_bytes` beside what the weights would take in float32, in words."""
    taken, whole = stored_bytes(model), 4 * parameter_count(model)
    return f"{taken / 1e6:.1f} MB in memory, {100 * taken / whole:.1f} % of float32's {whole / 1e6:.1f} MB"


def adapter_bytes(model: nn.Module) -> int:
    """Bytes of the factors, coefficients and token rows of a model's adapters."""
    return _distinct_bytes(value for _, layer in adapter_layers(model) for value in layer.adapter().values())


def parameter_count(model: nn.Module) -> int:
    """Number of weights, quantised ones counted singly though several share a stored element."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.modules():
        base = base_of(layer)
        if base is not None and base.quantization(layer) is not None:
            in_features, out_features = base.features(layer)
            stored = base.storage(layer)
            count += in_features * out_features - (stored.numel() if isinstance(stored, nn.Parameter) else 0)
    return count


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        base = base_of(module)
        if base is not None:
            yield from base.scales(module)


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    storages = {(value.device, value.untyped_storage().data_ptr()): value.untyped_storage() for value in tensors}
    return sum(storage.nbytes() for storage in storages.values())
