"""A whole adapter as a plain LoRA of one rank: what every export writes down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pera_lightning.checkpoint import Manifest, adapter_state_dict, manifest_of
from pera_lightning.checkpoint.adapter_folder import read_adapter
from pera_lightning.concurrency import reading
from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.lora.lora_factors import LoraFactors, exact_factors, padded, relative_rounding, spectrum
from pera_lightning.export.probe import relative_error
from pera_lightning.form_bounds import check_rank
from pera_lightning.functional.distributed import whole
from pera_lightning.storage.remote import Place

NO_LOSS = 1e-3
"""Relative error (Frobenius norm) of a weight change that matters to nobody: rounding to 16 bits is larger."""


@dataclass(frozen=True)
class LayerFit:
    """How well a layer's LoRA stands for its adapter.

    Attributes:
        expanded_rank: K, the rank that is exact.
        rank: Of the LoRA, without the zeros that fill it up.
        kept_energy: Part of the squared Frobenius norm of dW that the rank keeps; 1 if exact.
        rounding: Relative error of the dtype (Frobenius norm of dW).
    """

    expanded_rank: int
    rank: int
    kept_energy: float
    rounding: float


@dataclass(frozen=True)
class PlainLora:
    """An adapter as a LoRA: factors with coefficients and scaling in them, all of one rank, so that alpha = rank.

    Attributes:
        manifest: Of the PERA adapter.
        rank: Of every layer; layers that need less are filled up with zeros.
        factors: Layer name -> factors in the dtype of the export.
        saved: The tensors of the modules saved whole, by their names in the model.
        fits: Layer name -> what the export lost.
        saved_rounding: Name in `saved` -> relative error of the dtype (Frobenius norm).
    """

    manifest: Manifest
    rank: int
    factors: dict[str, LoraFactors]
    saved: dict[str, Tensor]
    fits: dict[str, LayerFit]
    saved_rounding: dict[str, float]

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding is lost."""
        return all(fit.rank >= fit.expanded_rank for fit in self.fits.values())


@dataclass(frozen=True)
class SmallerRank:
    """A rank that loses nothing that matters.

    Attributes:
        rank: The smallest one for all layers.
        error: Relative error (Frobenius norm) of the weight change at it, in the layer where it is largest.
    """

    rank: int
    error: float


@dataclass(frozen=True)
class PeraTensors:
    """A PERA adapter that is in no model, or has been read out of one.

    Attributes:
        manifest: Its options, layers and origin.
        tensors: As `adapter_state_dict` gives them.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, source: nn.Module | str | Place) -> PeraTensors:
        """The adapter of a model, or in a folder that `save_adapter` wrote.

        Raises:
            InjectionError: The model holds no adapter.
            AdapterFileError: The folder is missing or damaged.
        """
        if isinstance(source, nn.Module):
            with reading(source):
                tensors = {key: whole(value) for key, value in adapter_state_dict(source).items()}
                return cls(manifest_of(source), tensors)
        return cls(*read_adapter(source))

    def exact(self) -> Iterator[tuple[str, LoraFactors]]:
        """Layer by layer, the LoRA of rank K that it is."""
        for name in self.manifest.layers:
            yield name, self.factors(name)

    def factors(self, name: str) -> LoraFactors:
        """The LoRA of rank K that the adapter of one layer is."""
        A, B = self.tensors[f"{name}.pera_A"], self.tensors[f"{name}.pera_B"]
        return exact_factors(A, B, self.tensors.get(f"{name}.pera_h"), self.manifest.config, self.manifest.layers[name])

    @property
    def saved(self) -> dict[str, Tensor]:
        """The tensors that are saved whole: of modules, and trained biases."""
        ours = (".pera_A", ".pera_B", ".pera_h", ".token_rows.delta")
        return {key: value for key, value in self.tensors.items() if not key.endswith(ours)}


@torch.no_grad()
def plain_lora(
    adapter: PeraTensors, rank: int | None = None, *, max_error: float | None = None, dtype: torch.dtype = torch.float32
) -> PlainLora:
    """Make the LoRA, one layer after the other; the dense weight change is never built.

    Args:
        adapter: The adapter.
        rank: Cut every layer's LoRA to this rank by singular values; None is exact.
        max_error: Instead of `rank`: the relative error of dW (Frobenius norm) that no layer may exceed. The smallest
            rank that holds it is taken for all.
        dtype: Of the factors.

    Raises:
        ConfigError: Both `rank` and `max_error`, or one of them is out of range.
        ExportError: The adapter holds values that are not finite, or they do not fit the dtype.
    """
    _check(rank, max_error)
    refuse_infinite_tensors(adapter)
    if max_error is not None:
        rank = max(spectrum(factors).smallest_rank(max_error) for _, factors in adapter.exact())
    factors, fits = {}, {}
    for name, exact in adapter.exact():
        cut, kept = _cut(exact, rank)
        factors[name] = LoraFactors(*(part.to(dtype) for part in cut))
        _refuse_overflow(name, *factors[name])
        fits[name] = LayerFit(exact.rank, cut.rank, kept, relative_rounding(cut, factors[name]))
    width = max(part.rank for part in factors.values())
    filled = {name: padded(part, width) for name, part in factors.items()}
    saved = {key: value.to(dtype) if value.is_floating_point() else value for key, value in adapter.saved.items()}
    for key, value in saved.items():
        _refuse_overflow(key, value)
    rounding = {key: relative_error(saved[key].double(), value.double()) for key, value in adapter.saved.items()}
    return PlainLora(adapter.manifest, width, filled, saved, fits, rounding)


@torch.no_grad()
def smaller_rank(adapter: PeraTensors) -> SmallerRank | None:
    """The smallest rank with an error of at most `NO_LOSS`; None where that is the rank of the exact LoRA."""
    spectra, exact = [], 0
    for _, factors in adapter.exact():
        spectra.append(spectrum(factors))
        exact = max(exact, factors.rank)
    rank = max(found.smallest_rank(NO_LOSS) for found in spectra)
    if rank >= exact:
        return None
    return SmallerRank(rank, max(found.lost(rank) for found in spectra))


def _cut(exact: LoraFactors, rank: int | None) -> tuple[LoraFactors, float]:
    """The factors of a rank, and the part of the energy that they keep."""
    if rank is None or rank >= exact.rank:
        return exact, 1.0
    values = spectrum(exact)
    return values.cut(rank), 1.0 - values.lost(rank) ** 2


def _check(rank: int | None, max_error: float | None) -> None:
    if rank is not None and max_error is not None:
        raise ConfigError(
            "Either the rank or the error decides.",
            got=f"rank={rank} and max_error={max_error}",
            expected="one of them, or none for the exact export",
            fix="leave one out",
        )
    if rank is not None:
        check_rank(rank)
    if max_error is not None and not 0 < max_error < 1:
        raise ConfigError(
            "max_error is the relative error of the weight change that no layer may exceed.",
            got=repr(max_error),
            expected="a number between 0 and 1, for example 0.01",
            fix="leave it out for the exact export",
        )


def refuse_infinite_tensors(adapter: PeraTensors) -> None:
    """Raise ExportError if an adapter holds a value that is not finite."""
    broken = [key for key, value in adapter.tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise ExportError(
            "The adapter holds values that are not finite.",
            got=f"{broken[0]!r} with NaN or infinity",
            expected="finite values",
            fix="export the adapter of an earlier checkpoint; that training diverged",
        )


def _refuse_overflow(name: str, *tensors: Tensor) -> None:
    if not all(torch.isfinite(value).all() for value in tensors):
        raise ExportError(
            "The adapter does not fit the dtype of the export.",
            got=f"values of {name!r} beyond {tensors[0].dtype}",
            expected="a dtype that holds them",
            fix="use bfloat16 or float32",
        )
