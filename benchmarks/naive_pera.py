"""PERA written down from the paper's equations without a thought for cost: what the library is measured against."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn


class NaivePera(nn.Module):
    """`base(x) + dropout(x) A_hat^T B_hat^T` (paper Eq. 6 to 9), all left to autograd."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.h = nn.Parameter(torch.zeros(rank * (rank + 1) // 2))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pairs", torch.triu_indices(rank, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output."""
        i, j = self.pairs
        right = torch.cat([self.A, self.A[i] * self.A[j]])
        left = torch.cat([self.B, self.B[:, i] * self.B[:, j] * self.h], dim=1)
        return self.base(x) + self.dropout(x) @ right.T @ left.T


def inject_naive(model: nn.Module, rank: int, dropout: float, targets: Collection[str]) -> nn.Module:
    """Freeze the model and put a `NaivePera` on every target."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(module, name, NaivePera(child, rank, dropout))
    return model
