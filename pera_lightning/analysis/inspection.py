"""`inspect_adapter`: what training made of each layer's adapter, from its factors alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pera_lightning.checkpoint import Manifest
from pera_lightning.concurrency import reading
from pera_lightning.config import PeraConfig
from pera_lightning.errors import TrainingError
from pera_lightning.export.lora.lora_factors import LoraFactors, spectrum
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.families import part_of
from pera_lightning.functional import monomials
from pera_lightning.functional.expansion.coefficient_scale import scaled_coefficients
from pera_lightning.functional.factor_norms import product_norm
from pera_lightning.injection import LayerPlan
from pera_lightning.storage.remote import Place

NUMERICAL_RANK_CUT = 1e-6
"""Singular values above this share of the largest one count for the numerical rank."""


@dataclass(frozen=True, eq=False)
class LayerInspection:
    """The weight change dW of one layer.

    Attributes:
        layer: Name of the layer.
        shape: Of dW: (out, in).
        rank: r, of the factors.
        expanded_rank: K, of the plain LoRA that dW is.
        part_norms: Frobenius norm of each part of dW, scaling included: "linear", "square" (products b_i b_i), "cross"
            (b_i b_j), "degree 3" and so on. Parts that the adapter does not have are left out.
        norm: Frobenius norm of dW.
        singular_values: Of dW, falling; at most K.
        coefficients: h times `coefficient_scale`, one per monomial; None at order 1.
        polynomial_norm: Frobenius norm of all that is not linear.
    """

    layer: str
    shape: tuple[int, int]
    rank: int
    expanded_rank: int
    part_norms: dict[str, float]
    norm: float
    singular_values: Tensor
    coefficients: Tensor | None
    polynomial_norm: float

    def share(self, part: str) -> float:
        """The part's energy (squared norm) over the sum of those of all parts; 0 if dW has no such part or is zero.

        The parts are not orthogonal, so that their energies do not add up to that of dW.
        """
        return _share(self.part_norms, part)

    @property
    def polynomial_energy(self) -> float:
        """Norm of all that is not linear over that of the linear part, as logged during training (`pera_energy`)."""
        return self.polynomial_norm / self.part_norms["linear"] if self.part_norms["linear"] > 0 else 0.0

    @property
    def numerical_rank(self) -> int:
        """Number of singular values above 1e-6 of the largest one; 0 for a change of zero."""
        values = self.singular_values
        return int((values > NUMERICAL_RANK_CUT * values[0]).sum())

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the singular values divided by their sum (Roy and Vetterli, 2007); 0 for zero."""
        total = self.singular_values.sum()
        if total == 0:
            return 0.0
        parts = self.singular_values / total
        return math.exp(-torch.special.xlogy(parts, parts).sum().item())

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over the square of the largest singular value; 0 for a change of zero."""
        squares = self.singular_values.square()
        return (squares.sum() / squares[0]).item() if squares[0] > 0 else 0.0

    @property
    def beyond_rank(self) -> float:
        """Share of dW's energy after its r largest singular values: what no LoRA of rank r could hold."""
        squares = self.singular_values.square()
        return (squares[self.rank :].sum() / squares.sum()).item() if squares[0] > 0 else 0.0


@dataclass(frozen=True, eq=False)
class AdapterInspection:
    """All layers of an adapter.

    Attributes:
        config: The adapter's options.
        layers: One row per adapted layer, in the order of the model.
        others: What the adapter trains besides, in words: modules saved whole, biases, rows of tokens. They are in no
            row.
    """

    config: PeraConfig
    layers: tuple[LayerInspection, ...]
    others: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that at least one layer has."""
        return tuple(dict.fromkeys(part for row in self.layers for part in row.part_norms))

    @property
    def norm(self) -> float:
        """Frobenius norm of all weight changes together."""
        return math.hypot(*(row.norm for row in self.layers))

    @property
    def part_norms(self) -> dict[str, float]:
        """Norm of each part, all layers together."""
        return {part: math.hypot(*(row.part_norms.get(part, 0.0) for row in self.layers)) for part in self.parts}

    @property
    def polynomial_energy(self) -> float:
        """Mean over the layers, as logged during training."""
        return statistics.fmean(row.polynomial_energy for row in self.layers)

    @property
    def polynomial_share(self) -> float:
        """The energy of all parts but the linear one over the sum of those of all, all layers together."""
        return sum(self.share(part) for part in self.parts if part != "linear")

    @property
    def beyond_rank(self) -> float:
        """Share of the energy of all layers after the r largest singular values of each."""
        energy = self.norm**2
        return sum(row.beyond_rank * row.norm**2 for row in self.layers) / energy if energy > 0 else 0.0

    def share(self, part: str) -> float:
        """The part's energy over the sum of those of all parts, all layers together."""
        return _share(self.part_norms, part)


@torch.no_grad()
def inspect_adapter(model_or_dir: nn.Module | str | Place) -> AdapterInspection:
    """Norms, energies and ranks of each layer's weight change, in float64.

    Everything comes from the factors: singular values from a QR decomposition of both and a K x K core, norms from Gram
    matrices. The dense matrix is never built, and with a folder no model is needed.

    Args:
        model_or_dir: A model with adapters, or a folder that `save_adapter` wrote. A model that is sharded over
            processes is inspected by all of them together.

    Raises:
        InjectionError: The model holds no adapter.
        AdapterFileError: The folder is missing or damaged.
        TrainingError: The adapter holds values that are not finite.
    """
    with reading(model_or_dir):
        adapter = PeraTensors.of(model_or_dir)
        # An adapter is small, and not every accelerator has float64.
        return inspect_tensors(adapter.manifest, {key: value.cpu() for key, value in adapter.tensors.items()})


def inspect_tensors(manifest: Manifest, tensors: dict[str, Tensor]) -> AdapterInspection:
    """`inspect_adapter` of an adapter that is in no model.

    Args:
        manifest: Its options and layers.
        tensors: As `adapter_state_dict` gives them, on the CPU.
    """
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise TrainingError(
            "An adapter with values that are not finite cannot be inspected.",
            got=f"{broken[0]!r} with NaN or infinity",
            expected="finite values",
            fix="inspect the adapter of an earlier checkpoint; this training diverged",
        )
    adapter = PeraTensors(manifest, tensors)
    config = manifest.config
    rows = tuple(
        _inspect(name, factors, config, manifest.layers[name], tensors.get(f"{name}.pera_h"))
        for name, factors in adapter.exact()
    )
    return AdapterInspection(config, rows, tuple(_others(manifest)))


def _inspect(name: str, factors: LoraFactors, config: PeraConfig, plan: LayerPlan, h: Tensor | None) -> LayerInspection:
    down, up = factors
    columns = part_columns(plan.rank, config)
    if h is not None:
        h = scaled_coefficients(
            h.double(), config.coefficient_scale, plan.rank, config.order, config.terms, down.shape[1]
        )
    return LayerInspection(
        layer=name,
        shape=(up.shape[0], down.shape[1]),
        rank=plan.rank,
        expanded_rank=factors.rank,
        part_norms={part: product_norm(up[:, chosen], down[chosen]).item() for part, chosen in columns.items()},
        norm=product_norm(up, down).item(),
        singular_values=spectrum(factors).values,
        coefficients=h,
        polynomial_norm=product_norm(up[:, plan.rank :], down[plan.rank :]).item(),
    )


def part_columns(rank: int, config: PeraConfig) -> dict[str, list[int]]:
    """Which of the K columns of the expanded factors belong to which part of dW."""
    columns = {"linear": list(range(rank))}
    for column, indices in enumerate(monomials(rank, config.order, config.terms), start=rank):
        columns.setdefault(part_of(indices), []).append(column)
    return columns


def _others(manifest: Manifest) -> Iterable[str]:
    if manifest.saved:
        names = ", ".join(manifest.saved[:3]) + (", ..." if len(manifest.saved) > 3 else "")
        yield f"{len(manifest.saved)} modules or biases saved whole ({names})"
    for name, plan in manifest.tokens.items():
        yield f"{len(plan.ids)} rows of {name}"


def _share(norms: dict[str, float], part: str) -> float:
    total = sum(norm**2 for norm in norms.values())
    return norms.get(part, 0.0) ** 2 / total if total > 0 else 0.0
