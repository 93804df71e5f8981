"""Operations in place and their like out of place, after an adapted layer and after the equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_lightning import PeraConfig, PeraLinear
from tests.support.reference import reference_delta_weight

RANK, IN, OUT = 2, 6, 5

Operation = Callable[[Tensor], Tensor]


def add_in_place(y: Tensor) -> Tensor:
    y += torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)
    return y


def write_a_slice(y: Tensor) -> Tensor:
    y[..., 1:3] = 0.5
    return y


def multiply_part(y: Tensor) -> Tensor:
    y[..., 0].mul_(3)
    return y


def several(y: Tensor) -> Tensor:
    y.add_(0.5).mul_(2)
    return F.leaky_relu_(y, 0.3)


def dropout(y: Tensor, inplace: bool = True) -> Tensor:
    torch.manual_seed(3)
    return F.dropout(y, 0.5, True, inplace)


# In place, and the same out of place.
OPERATIONS: dict[str, tuple[Operation, Operation]] = {
    "relu": (F.relu_, F.relu),
    "silu": (lambda y: F.silu(y, inplace=True), F.silu),
    "dropout": (dropout, lambda y: dropout(y, False)),
    "add": (add_in_place, lambda y: y + torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)),
    "slice": (write_a_slice, lambda y: torch.cat([y[..., :1], torch.full_like(y[..., 1:3], 0.5), y[..., 3:]], -1)),
    "part": (multiply_part, lambda y: torch.cat([y[..., :1] * 3, y[..., 1:]], -1)),
    "several": (several, lambda y: F.leaky_relu((y + 0.5) * 2, 0.3)),
}


def adapted(order: int = 2, base: nn.Module | None = None, **options: Any) -> PeraLinear:
    layer = PeraLinear(base or nn.Linear(IN, OUT).requires_grad_(False), PeraConfig(RANK, order, **options))
    for factor in layer.adapter().values():
        nn.init.normal_(factor)
    return layer.train()


def factors(layer: PeraLinear) -> list[Tensor]:
    return list(layer.adapter().values())


def expected(layer: PeraLinear, weight: Tensor, x: Tensor, after: Operation) -> list[Tensor]:
    """Output and gradients by the equation, in float64 and out of place."""
    given = [value.detach().double().requires_grad_() for value in (x, *factors(layer))]
    A, B, *h = given[1:]
    change = reference_delta_weight(A, B, h[0] if h else None, layer.config.order, "full", layer.scaling)
    bias = getattr(layer.base_layer, "bias", None)
    y = given[0] @ (weight.detach().double() + change).T
    y = after(y if bias is None else y + bias.double())
    return [y, *torch.autograd.grad(weighed(y), given)]


def weighed(y: Tensor) -> Tensor:
    return (y * torch.linspace(1, 2, y.numel(), dtype=torch.float64).view(y.shape)).sum()


def check(layer: PeraLinear, weight: Tensor, x: Tensor, operation: str, tolerance: float = 1e-4) -> None:
    in_place, out_of_place = OPERATIONS[operation]
    y = in_place(layer(x))
    wanted = [x, *factors(layer)] if x.requires_grad else factors(layer)
    found = [y, *torch.autograd.grad(weighed(y), wanted)]
    exact = expected(layer, weight, x, out_of_place)
    exact = exact if x.requires_grad else [exact[0], *exact[2:]]
    for value, right in zip(found, exact, strict=True):
        assert (value.double() - right).abs().max() <= tolerance * right.abs().max().clamp(min=1)
