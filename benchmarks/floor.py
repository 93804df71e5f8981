"""The arithmetic of one training step, in multiply-adds, computed by the factored form."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from benchmarks.models import TARGETS
from pera_lightning.functional import expanded_rank

Shape = tuple[int, int]
"""(out, in)."""


def step_floor(model: nn.Module, rank: int, order: int = 2) -> float:
    """A step with PERA over a step with LoRA of the same rank: large products only, per token."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    every = [tuple(module.weight.shape) for _, module in linear]
    targets = [tuple(module.weight.shape) for name, module in linear if name.rpartition(".")[2] in TARGETS]
    return _ratio(every, targets, rank, order)


def layer_floor(shape: Shape, rank: int, order: int = 2) -> float:
    """Forward and backward of one adapted layer over the same with LoRA."""
    return _ratio([shape], [shape], rank, order)


def _ratio(every: Iterable[Shape], targets: Iterable[Shape], rank: int, order: int) -> float:
    base = 2 * sum(m * n for m, n in every)
    around = sum(m + n for m, n in targets)
    return (base + 3 * expanded_rank(rank, order) * around) / (base + 3 * rank * around)
