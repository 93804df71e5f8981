"""What a fit holds on a GPU, counted on a model without memory (meta device)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from pera_lightning.base_layers import QUANTIZATIONS, Quantization
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import adapted_layers, layers_to_quantize

GB = 2**30
"""Bytes in a GB, as cards are sold."""
CONTEXT = 600 * 2**20
"""Rule of thumb: bytes that CUDA, cuBLAS and the kernels themselves take."""
SLACK = 0.1
"""Rule of thumb: what the allocator loses between blocks, as a share of what a step allocates."""

OPTIMIZER_BLOCK = 256
"""Entries that share a scale in bitsandbytes' 8-bit optimizers."""
SMALLEST_8BIT = 4096
"""Tensors with fewer entries keep their optimizer states in 32 bits."""
_FLOAT = 4


@dataclass(frozen=True)
class HeldMemory:
    """Bytes that are there throughout a fit.

    Attributes:
        base: Frozen parameters and buffers, quantised where they are.
        trained: Factors, coefficients and modules saved whole.
        gradients: Of the trained parameters.
        optimizer: States of the optimizer.
    """

    base: int
    trained: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.trained + self.gradients + self.optimizer


def held_memory(
    model: nn.Module, *, quantized: Collection[nn.Module] = (), quantization: Quantization | None = None, optimizer: str
) -> HeldMemory:
    """Count what a fit of an adapted model holds all the time.

    Args:
        model: With adapters; on the meta device its dense weights stand for the quantised ones.
        quantized: Layers whose weights are quantised.
        quantization: "nf4", "nf4-dq", "fp4" or "int8"; None if nothing is.
        optimizer: "adamw", "adamw_8bit" or "paged_adamw_8bit".
    """
    packed = {id(layer.weight) for layer in quantized}
    frozen: list[Tensor] = [value for value in model.parameters() if not value.requires_grad]
    dense = [value for value in [*frozen, *model.buffers()] if id(value) not in packed]
    trained = [value for value in model.parameters() if value.requires_grad]
    base = _bytes(dense) + sum(quantized_bytes(value, quantization) for value in frozen if id(value) in packed)
    return HeldMemory(base, _bytes(trained), _bytes(trained), optimizer_bytes(trained, optimizer))


def quantizable_layers(model: nn.Module) -> list[nn.Module]:
    """The linear layers that `quantize_model` takes. To be asked before the injection."""
    names, _ = layers_to_quantize(model)
    return [model.get_submodule(aliases[0]) for aliases in names]


def quantized_bytes(weight: Tensor, quantization: Quantization | None) -> int:
    """Bytes of a weight (out, in) as bitsandbytes stores it: packed entries, scales and tables."""
    return _bytes([weight]) if quantization is None else QUANTIZATIONS[quantization].stored_bytes(weight.shape)


def optimizer_bytes(parameters: Iterable[Tensor], optimizer: str) -> int:
    """Bytes of AdamW's two states of each parameter, scales included."""
    return sum(2 * _state_bytes(parameter, optimizer != "adamw") for parameter in parameters)


def largest_expansion(model: nn.Module) -> int:
    """Bytes of the expanded factors, K (in + out) entries, of the layer where they are largest."""
    return max(
        expanded_rank(layer.rank, layer.config.order, layer.config.terms)
        * (layer.in_features + layer.out_features)
        * layer.pera_A.element_size()
        for _, layer in adapted_layers(model)
    )


def largest_unpacked(quantized: Iterable[nn.Module]) -> int:
    """Bytes of the largest quantised weight while it is unpacked for a product."""
    return max((_bytes([layer.weight]) for layer in quantized), default=0)  # type: ignore[list-item]


class Growth(NamedTuple):
    """The peak of a step as a function of its rows or their length, x: the largest of one polynomial for each phase."""

    phases: tuple[tuple[float, float, float], ...]
    """Factors of 1, x and x ** 2."""

    @classmethod
    def through(cls, points: Sequence[tuple[int, Sequence[int]]]) -> Growth:
        """The one through two points (x, peaks of the phases), straight, or three; x rising."""
        sizes = [x for x, _ in points]
        return cls(tuple(_polynomial(sizes, peaks) for peaks in zip(*(peaks for _, peaks in points), strict=True)))

    def at(self, x: int) -> float:
        """Bytes of a step of this size."""
        return max(fixed + linear * x + quadratic * x**2 for fixed, linear, quadratic in self.phases)


def _polynomial(sizes: Sequence[int], peaks: Sequence[int]) -> tuple[float, float, float]:
    (x1, x2), (y1, y2) = sizes[-2:], peaks[-2:]
    slope, quadratic = (y2 - y1) / (x2 - x1), 0.0
    if len(sizes) > 2:
        # A bend downwards is the change from one peak to another; the later slope goes on.
        quadratic = max(0.0, (slope - (y1 - peaks[0]) / (x1 - sizes[0])) / (x2 - sizes[0]))
    linear = slope - quadratic * (x1 + x2)
    return y2 - linear * x2 - quadratic * x2**2, linear, quadratic


def needed(held: HeldMemory, step: float) -> float:
    """Bytes of a card that a fit needs whose steps allocate `step` bytes; rules of thumb included."""
    return held.total + step * (1 + SLACK) + CONTEXT


def _state_bytes(parameter: Tensor, in_8_bits: bool) -> int:
    if not in_8_bits:
        return _bytes([parameter])
    entries = parameter.numel()
    if entries < SMALLEST_8BIT:
        return _FLOAT * entries
    return entries + _FLOAT * -(-entries // OPTIMIZER_BLOCK)


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
