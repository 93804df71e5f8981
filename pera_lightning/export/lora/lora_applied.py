"""A plain LoRA at work in the adapted model that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pera_lightning.checkpoint.manifest.layer_traits import READ, layer_traits
from pera_lightning.concurrency import changing
from pera_lightning.errors import AdapterFileError
from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.injection import original_names, saved_tensors
from pera_lightning.layers import PeraEmbedding, PeraLinear


@contextmanager
def lora_applied(model: nn.Module, lora: StoredLora) -> Iterator[nn.Module]:
    """A model whose adapters give way to a plain LoRA: `y = base(x) + (x down^T) up^T`, two products and nothing else.

    Args:
        model: A model with adapters, unmerged.
        lora: Of exactly its adapted layers and modules saved whole, which get their values from it for the time.

    Raises:
        AdapterFileError: The LoRA does not hold all that the model's adapter does.
    """
    with changing(model), ExitStack() as hooks:
        own, traits = dict(saved_tensors(model)), layer_traits(model)
        _check_complete(model, own, lora)
        layers = [(name, layer) for name, layer in original_names(model) if isinstance(layer, PeraLinear)]
        # Not adapter_disabled, which would take modules saved whole back to their start.
        enabled = [layer for _, layer in layers if layer.enabled]
        for name, layer in layers:
            hooks.enter_context(_applied(layer, lora.factors[name], READ in traits.get(name, ())))
        trained = {key: value.detach().clone() for key, value in own.items()}
        try:
            for layer in enabled:
                layer.enabled = False
            _copy(lora.saved, own)
            yield model
        finally:
            _copy(trained, own)
            for layer in enabled:
                layer.enabled = True


def _check_complete(model: nn.Module, own: Mapping[str, Tensor], lora: StoredLora) -> None:
    wanted = {name for name, layer in original_names(model) if isinstance(layer, PeraLinear)}
    missing = sorted((wanted - lora.factors.keys()) | (own.keys() - lora.saved.keys()))
    if missing:
        raise AdapterFileError(
            "The export does not hold all of the adapter.",
            got=f"no {missing[0]!r}" + (f" and {len(missing) - 1} others missing" if len(missing) > 1 else ""),
            expected="factors of every adapted layer, and every module saved whole",
            fix="export it again",
        )


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for key, target in into.items():
        target.copy_(values[key])


def _applied(layer: PeraLinear, factors: LoraFactors, read: bool) -> AbstractContextManager[object]:
    base, embedding = layer.base_layer, isinstance(layer, PeraEmbedding)
    # What the model reads is not called, and the other way round on torch's fast path: the weight serves both.
    if read and layer.quantization is None and isinstance(base, nn.Linear | nn.Embedding):
        return _in_the_weight(base, factors, embedding)
    return base.register_forward_hook(_adding(factors, embedding))


@contextmanager
def _in_the_weight(base: nn.Linear | nn.Embedding, factors: LoraFactors, embedding: bool) -> Iterator[None]:
    weight = base.weight
    down, up = (part.to(weight.device, torch.promote_types(part.dtype, weight.dtype)) for part in factors)
    change = (up @ down).T if embedding else up @ down
    base.weight = nn.Parameter((weight.detach() + change).to(weight.dtype), requires_grad=False)
    try:
        yield
    finally:
        base.weight = weight


def _adding(factors: LoraFactors, embedding: bool) -> Callable[..., Tensor]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = (part.to(output.device, output.dtype) for part in factors)
        middle = down.T[inputs[0]] if embedding else inputs[0] @ down.T
        return output + middle @ up.T

    return add
