"""Whether an export does what the adapter does: loaded back by another route and compared on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.errors import AdapterFileError
from pera_lightning.export.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.probe import probe_outputs
from pera_lightning.injection import adapter_disabled, original_names, saved_tensors
from pera_lightning.layers import PeraEmbedding, PeraLinear


@dataclass(frozen=True)
class Certificate:
    """What the comparison of an export with its adapter found.

    Attributes:
        route: How the export was loaded back, e.g. "peft 0.21.2".
        positions: Number of compared positions.
        max_difference: Largest absolute difference of an output (logit).
        max_change: Largest absolute change of an output by the adapter itself, to compare with.
        agreement: Part of the positions where the largest output is the same one.
    """

    route: str
    positions: int
    max_difference: float
    max_change: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"loaded back by {self.route}: outputs differ by at most {self.max_difference:.1e} (the adapter changes "
            f"them by up to {self.max_change:.1e}); the largest is the same at {self.agreement:.2%} of "
            f"{self.positions:,} positions"
        )


@dataclass(frozen=True)
class Reference:
    """What an adapted model computes for some inputs.

    Attributes:
        inputs: One call each, see `probe_outputs`.
        outputs: Shape (positions, outputs) each; padding is left out.
        max_change: Largest absolute change of an output by the adapter.
    """

    inputs: Sequence[Any]
    outputs: list[Tensor]
    max_change: float

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Any]) -> Reference:
        """Call a model with its adapter and without."""
        outputs = [_positions(model, values) for values in inputs]
        with adapter_disabled(model):
            base = [_positions(model, values) for values in inputs]
        return cls(inputs, outputs, _largest(outputs, base))

    def compare(self, model: nn.Module, route: str) -> Certificate:
        """Hold another model against it.

        Args:
            model: The export, loaded back.
            route: How it was loaded, for the certificate.
        """
        found = [_positions(model, values) for values in self.inputs]
        positions = sum(len(rows) for rows in self.outputs)
        same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(found, self.outputs, strict=True))
        return Certificate(route, positions, _largest(found, self.outputs), self.max_change, same / positions)


@contextmanager
def lora_applied(model: nn.Module, lora: StoredLora) -> Iterator[nn.Module]:
    """A model whose adapters give way to a plain LoRA: `y = base(x) + (x down^T) up^T`, two products and nothing else.

    Args:
        model: A model with adapters, unmerged.
        lora: Of exactly its adapted layers and modules saved whole, which get their values from it for the time.

    Raises:
        AdapterFileError: The LoRA does not hold all that the model's adapter does.
    """
    own = dict(saved_tensors(model))
    _check_complete(model, own, lora)
    layers = [(name, layer) for name, layer in original_names(model) if isinstance(layer, PeraLinear)]
    # Not adapter_disabled, which would take modules saved whole back to their start.
    enabled = [layer for _, layer in layers if layer.enabled]
    hooks = [
        layer.base_layer.register_forward_hook(_adding(lora.factors[name], isinstance(layer, PeraEmbedding)))
        for name, layer in layers
    ]
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
        for hook in hooks:
            hook.remove()


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


def _adding(factors: LoraFactors, embedding: bool) -> Callable[..., Tensor]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = (part.to(output.device, output.dtype) for part in factors)
        middle = down.T[inputs[0]] if embedding else inputs[0] @ down.T
        return output + middle @ up.T

    return add


def _positions(model: nn.Module, values: Any) -> Tensor:
    outputs = probe_outputs(model, values)
    assert outputs is not None
    mask = values.get("attention_mask") if isinstance(values, dict) else None
    if mask is not None and mask.shape == outputs.shape[:-1]:
        return outputs[mask.bool().cpu()]
    return outputs.flatten(0, -2)


def _largest(some: list[Tensor], others: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))
