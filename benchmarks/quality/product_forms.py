"""Further forms of the products that `docs/RESEARCH.md` tries: other columns, and other times and places for them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from benchmarks.quality.variants import FollowingScale
from pera_lightning.functional import expand, monomials
from pera_lightning.functional.precision import product_dtype
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear


class FormLayer(PeraLinear):
    """A layer whose weight change is `left @ right` with columns of its own; order 2, without dropout."""

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the linear part (out, .) and (., in), and of the polynomial one, its coefficients in the left factor."""
        raise NotImplementedError

    def parts(self) -> tuple[Tensor, Tensor]:
        """The linear and the polynomial part of dW, both (out, in)."""
        left, right, polynomial_left, polynomial_right = self.columns()
        return left @ right, polynomial_left @ polynomial_right

    @override
    def delta_weight(self) -> Tensor:
        return sum(self.parts(), torch.zeros(()))

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output, dtype = self.base_layer(x, *args, **kwargs), product_dtype(x)
        left, right, polynomial_left, polynomial_right = self.columns()
        left = torch.cat([left, polynomial_left], dim=1).to(dtype)
        right = torch.cat([right, polynomial_right]).to(dtype)
        return output + (x.to(dtype) @ right.T) @ left.T


class CentredLayer(FormLayer):
    """The mean over the row is taken from every square, of A and of B, so that no column is spent on the constant."""

    @override
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rank, A, B = self.rank, self.pera_A, self.pera_B
        squares = torch.tensor([i == j for i, j in monomials(rank)], device=A.device)
        left, right = expand(B, 1)[:, rank:], expand(A, 0)[rank:]
        left = left - left.mean(0, keepdim=True) * squares
        right = right - right.mean(1, keepdim=True) * squares[:, None]
        return B, A, left * self.coefficients, right


class NormalRowsLayer(FormLayer):
    """Products of rows of RMS 1, whatever their sizes, times a gain that is trained; the last entry of h is its log.

    It starts at the RMS of A's start, so that a step of h changes the weights as much as one of B does.
    """

    @override
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rank, A, B = self.rank, self.pera_A, self.pera_B
        # B starts at zero: a column far smaller than any that was trained is left small.
        left = expand(B / (B.square().mean(0, keepdim=True) + 1e-10).sqrt(), 1)[:, rank:]
        right = expand(A / A.square().mean(1, keepdim=True).sqrt(), 0)[rank:]
        return B, A, left * self.coefficients, right

    @property
    @override
    def coefficients(self) -> Tensor:
        return self.pera_h[:-1] * self.pera_h[-1].exp() / math.sqrt(3 * self.in_features)


class SeparateLayer(FormLayer):
    """The last half of the rows serves the products only, the first half the linear part only.

    The products' columns of B start as large as their rows of A, at random: at zero nothing would ever move. h starts
    at zero, so that the model starts as its base. Constants make the columns on the left 1 in size at the start, and
    those on the right as large as A.
    """

    @property
    def own(self) -> int:
        """Rows of the products."""
        return self.rank // 2

    @override
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        linear, A, B = self.rank - self.own, self.pera_A, self.pera_B
        size = 1 / math.sqrt(3 * self.in_features)
        left = expand(B[:, linear:] / size, 1)[:, self.own :]
        right = expand(A[linear:] / size, 0)[self.own :] * size
        return B[:, :linear], A[:linear], left * self.pera_h, right

    @property
    @override
    def coefficients(self) -> Tensor:
        linear = self.rank - self.own
        of_own = torch.tensor([i >= linear for i, _ in monomials(self.rank)], device=self.pera_h.device)
        return self.pera_h.new_zeros(len(of_own)).masked_scatter(of_own, self.pera_h)


class _Form(Callback):
    """Makes the adapted layers those of a form, and logs their energy in the test, which `compare` cannot know."""

    LAYER: ClassVar[type[FormLayer]]

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for _, layer in adapted_layers(pl_module):
            layer.__class__ = self.LAYER
            self.start(layer)

    def start(self, layer: FormLayer) -> None:
        """What is different at the start; the optimizer knows the parameters already, so that only values change."""

    @override
    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        norms = [[part.norm() for part in layer.parts()] for _, layer in adapted_layers(pl_module)]
        energies = [polynomial / linear for linear, polynomial in norms if linear > 0]
        self.log("test_energy", torch.stack(energies).mean() if energies else 0.0)


class CentredProducts(_Form):
    """See `CentredLayer`."""

    LAYER = CentredLayer


class NormalRows(_Form):
    """See `NormalRowsLayer`."""

    LAYER = NormalRowsLayer

    @override
    def start(self, layer: FormLayer) -> None:
        layer.pera_h.data = layer.pera_h.new_zeros(layer.pera_h.numel() + 1)


class SeparateFactors(_Form):
    """See `SeparateLayer`; for ranks above 1."""

    LAYER = SeparateLayer

    @override
    @torch.no_grad()
    def start(self, layer: FormLayer) -> None:
        own = layer.rank // 2
        layer.pera_h.data = layer.pera_h.new_zeros(own * (own + 1) // 2)
        layer.pera_B[:, layer.rank - own :].normal_(std=1 / math.sqrt(3 * layer.in_features))


def _hold(layer: PeraLinear) -> None:
    # Not zeros: the optimizer skips what has none.
    layer.pera_h.grad = None


class GrowingScale(FollowingScale):
    """LoRA up to some step; then products as in `FollowingScale`, of both, whose size grows evenly until the end.

    Args:
        start: At which share of the steps the products begin.
    """

    def __init__(self, start: float) -> None:
        super().__init__(of_both=True)
        self.start = start

    @override
    def scale(self, layer: PeraLinear, trainer: pl.Trainer) -> float:
        grown = (share_of_steps(trainer) - self.start) / (1 - self.start)
        # Never 0, which no scale may be; h is 0 until then.
        return super().scale(layer, trainer) * max(grown, 0.01)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if share_of_steps(trainer) < self.start:
            for _, layer in adapted_layers(pl_module):
                _hold(layer)


class FlatLayers(Callback):
    """LoRA up to some step; then products in that half of the layers where the linear part's spectrum is flattest.

    Args:
        start: At which share of the steps they are chosen, and the products begin.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self._held: list[PeraLinear] | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._held = None

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        layers = [layer for _, layer in adapted_layers(pl_module)]
        if self._held is None and share_of_steps(trainer) >= self.start:
            self._held = sorted(layers, key=flatness)[: len(layers) // 2]
        for layer in layers if self._held is None else self._held:
            _hold(layer)


def share_of_steps(trainer: pl.Trainer) -> float:
    """How much of the training is done, from 0 to 1."""
    return trainer.global_step / trainer.estimated_stepping_batches


@torch.no_grad()
def flatness(layer: PeraLinear) -> float:
    """Effective rank of the linear part by the entropy of its singular values' squares, over the rank: 1 is flat."""
    left, right = torch.linalg.qr(layer.pera_B.float()).R, torch.linalg.qr(layer.pera_A.float().T).R
    shares = torch.linalg.svdvals(left @ right.T).square()
    shares = shares / shares.sum()
    return (torch.special.entr(shares).sum().exp() / layer.rank).item()
