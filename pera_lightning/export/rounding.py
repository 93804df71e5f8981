"""How far rounding alone takes the outputs of a model: the measure of what an exact export may differ by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.concurrency import changing
from pera_lightning.injection import adapter_layers

LIMITS = {torch.float32: 16.0, torch.float64: 16.0, torch.bfloat16: 4.0, torch.float16: 4.0}
"""Dtype -> how many times the effect of one rounding an exact export may differ by.

Half precisions add up in float32 and round once: 0.9 to 1.4 were measured over a dozen families. Sums in float32 round
at every step, so that long ones err by several roundings.
"""
OUTLIERS = 8.0
"""How much further the mean may go than the median position: a router sends a token to another expert at a tie."""
DRAWS = 3


@dataclass(frozen=True)
class Rounding:
    """What one rounding of every adapted layer's output does to the outputs of a model (root mean squares).

    A weight rounded to a dtype changes its layer's output by noise of that relative size, as the two orders in which
    the same product can be computed do.

    Attributes:
        dtype: That is rounded to.
        median: Change of the median position.
        mean: Change over all positions, in the worst of `DRAWS` draws.
    """

    dtype: torch.dtype
    median: float
    mean: float

    @property
    def limit(self) -> float:
        """How many roundings an exact export may be off."""
        return LIMITS[self.dtype]

    def count(self, differences: Tensor) -> float:
        """How many roundings a difference is worth.

        Args:
            differences: Of each position, root mean square.
        """
        whole = differences.square().mean().sqrt().item()
        # NaN has to come through, which max() would lose.
        both = torch.tensor([differences.median().item() / self.median, whole / self.mean / OUTLIERS])
        return both.max().item()


def measured_rounding(
    model: nn.Module,
    calls: Sequence[Callable[[], Tensor]],
    outputs: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> Rounding:
    """Call an adapted model with its layers' outputs rounded at random.

    Args:
        model: With adapters.
        calls: Each calls the model and returns its outputs, shape (positions, outputs).
        outputs: What they return without rounding.
        dtype: That the weights are rounded to; the coarser of this and what the model computes in counts.
    """
    found = []
    coarsest = torch.float32 if dtype is None else dtype
    for seed in range(DRAWS):
        with _rounded(model, coarsest, seed) as seen:
            rows = [row_differences(call(), wanted) for call, wanted in zip(calls, outputs, strict=True)]
        coarsest = max((coarsest, *seen), key=_epsilon)
        found.append(torch.cat(rows))
    size = torch.cat([rows.square().mean(-1) for rows in outputs]).mean().sqrt().item()
    # Outputs of zero, or no adapted layer in their way: their own rounding is left.
    least = max(_epsilon(coarsest) / 2 * size, torch.finfo(torch.float32).tiny)
    median = max(rows.median().item() for rows in found)
    mean = max(rows.square().mean().sqrt().item() for rows in found)
    return Rounding(coarsest, max(median, least), max(mean, least))


def row_differences(some: Tensor, others: Tensor) -> Tensor:
    """Root mean square of the difference of each position; infinities that are the same (masked outputs) are none."""
    return torch.where(some == others, 0.0, some - others).square().mean(-1).sqrt()


@contextmanager
def _rounded(model: nn.Module, dtype: torch.dtype, seed: int) -> Iterator[set[torch.dtype]]:
    """Add noise of one rounding to what every adapted layer returns; yields the dtypes that the layers compute in."""
    generator, seen = torch.Generator().manual_seed(seed), set[torch.dtype]()

    def hook(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        computed = _computed_dtype(layer, output)
        seen.add(computed)
        unit = max(_epsilon(computed), _epsilon(dtype)) / 2
        wide = output.float()
        # Errors up to half a step, evenly spread: a deviation of the half step over the root of 3.
        size = wide.square().mean(-1, keepdim=True).sqrt() * (unit / 3**0.5)
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        return (wide + size * noise).to(output.dtype)

    with changing(model), ExitStack() as stack:
        for _, layer in adapter_layers(model):
            stack.enter_context(layer.register_forward_hook(hook))
        yield seen


def _computed_dtype(layer: Any, output: Tensor) -> torch.dtype:
    """The coarsest dtype on the way to a layer's output: its own, that of 4-bit products, or of fast float32 ones."""
    inner = getattr(layer.base_layer, "compute_dtype", None)
    found = [output.dtype, *([inner] if inner in LIMITS else [])]
    precision = torch.get_float32_matmul_precision()
    if output.is_cuda and output.dtype == torch.float32 and precision != "highest":
        # TensorFloat-32 keeps as many digits as float16.
        found.append(torch.float16 if precision == "high" else torch.bfloat16)
    return max(found, key=_epsilon)


def _epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps
