"""Layers that are linear by class: some do more than multiply, some only look as if they did."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

WIDTH = 8


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class LearnedScale(nn.Linear):
    """A scale that begins at one, as after a start."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.scale = nn.Parameter(torch.ones(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Masked(nn.Linear):
    """A mask that is still open."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("mask", torch.ones(n_out, n_in, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class NormedInput(nn.Linear):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.norm = nn.LayerNorm(n_in)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-50, 50)


class DropsInput(nn.Linear):
    """In training alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


class Rounded(nn.Linear):
    """8-bit numbers in and out."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return super().forward((x / step).round() * step)


class Routing(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits.softmax(-1), logits


class OtherArguments(nn.Linear):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class ScaledOnDemand(nn.Linear):
    """Plain until somebody asks for more."""

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        product = super().forward(x)
        return product if scale is None else scale * product


class Wider(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((super().forward(x), x), -1)


class Grouped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(2, -1, WIDTH // 2)
        return torch.einsum("...gi,goi->...go", x.unflatten(-1, (2, -1)), weight).flatten(-2)


class ScaledConv1D(Conv1D):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_out, n_in)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class CalledOtherwise(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * super().__call__(x)


class ByGroups(nn.Linear):
    """Rounds its input in groups where the width allows."""

    def forward(self, x: Tensor) -> Tensor:
        if self.in_features % WIDTH:
            return super().forward(x)
        groups = x.unflatten(-1, (-1, WIDTH))
        step = groups.abs().amax(-1, keepdim=True) / 7
        return super().forward(((groups / step).round() * step).flatten(-2))


class RoundsWeight(nn.Linear):
    """In blocks of 32, if there are such."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.numel() % 32:
            return super().forward(x)
        blocks = self.weight.reshape(-1, 32)
        step = blocks.abs().amax(-1, keepdim=True) / 7
        return F.linear(x, ((blocks / step).round() * step).reshape(self.weight.shape), self.bias)


class NoLastOutputs(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (torch.arange(self.out_features) < 6)


class ManyRows(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (0.5 if x.shape[0] > 16 else 1.0)


class FourDimensions(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.dim() == 4 else 1.0)


class ClampedHigh(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-1e3, 1e3))


class WithGradients(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if torch.is_grad_enabled() else 1.0)


class WithAutocast(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if torch.is_autocast_enabled("cpu") else 1.0)


class HandsOut(nn.Linear):
    """The forward of its kind, with another weight than the stored one."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        value = super().__getattr__(name)
        return 2 * value if name == "weight" else value  # type: ignore[return-value, operator]


MORE = (
    Scaled, LearnedScale, Masked, Standardised, NormedInput, Clamped, DropsInput, Rounded, Routing, OtherArguments,
    ScaledOnDemand, Wider, Grouped, ScaledConv1D, CalledOtherwise, ManyRows,
    FourDimensions, ClampedHigh, WithGradients, WithAutocast, HandsOut,
)  # fmt: skip


BY_SIZE = (ByGroups, RoundsWeight, NoLastOutputs)
"""Plain in other sizes than `WIDTH`."""


class WrittenOut(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class WithBranch(nn.Linear):
    """As LoRA layers of some libraries are: something is added to the product."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.down, self.up = nn.Parameter(torch.randn(2, n_in)), nn.Parameter(torch.randn(n_out, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.dropout(x, 0.1, self.training) @ self.down.T @ self.up.T


class OfItsSize(nn.Linear):
    """It counts its calls, and works for its own width alone."""

    calls = 0

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("seen", torch.zeros(n_in))
        self.history: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(len(x))
        self.seen += x.detach().reshape(-1, x.shape[-1]).sum(0)
        return super().forward(x)


class Checkpointed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class WrittenOutConv1D(Conv1D):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_out, n_in)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


PLAIN = (nn.Linear, WrittenOut, WithBranch, OfItsSize, Checkpointed, WrittenOutConv1D)
