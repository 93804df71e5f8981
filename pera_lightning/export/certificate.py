"""Whether an export does what the adapter does: loaded back by another route and compared on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.lora.lora_applied import lora_applied
from pera_lightning.export.lora.lora_factors import StoredLora
from pera_lightning.export.probe import model_outputs
from pera_lightning.export.rounding import Rounding, measured_rounding, row_differences
from pera_lightning.injection import adapter_disabled

READ_ITSELF = (
    "where the model reads a layer's weight itself, a LoRA does nothing: merge the adapter, which holds everything "
    "(--to merged, or merge_adapter(model) in Python), or train without these layers (exclude_modules). Nothing was "
    "written"
)


@dataclass(frozen=True)
class Certificate:
    """What the comparison of an export with its adapter found.

    Attributes:
        route: How the export was loaded back, e.g. "peft 0.21.2".
        positions: Number of compared positions.
        max_difference: Largest absolute difference of an output (logit).
        max_change: Largest absolute change of an output by the adapter itself, to compare with.
        agreement: Part of the positions where the largest output is the same one.
        roundings: How many times what one rounding to `dtype` does to this model's outputs the export differs from what
            was to be written (see `Rounding.count`); None where nothing says how much it may differ.
        limit: The largest `roundings` of an export that is what it should be.
        dtype: That the model computes in or its weights are rounded to, whichever is coarser.
        expected: Why the outputs differ from the adapter's by more than rounding, e.g. "rank 2 of 14"; None if they
            must not.
    """

    route: str
    positions: int
    max_difference: float
    max_change: float
    agreement: float
    roundings: float | None = None
    limit: float | None = None
    dtype: str | None = None
    expected: str | None = None

    @property
    def inexact(self) -> bool:
        """Whether the export differs from what it should compute by more than rounding."""
        return self.roundings is not None and self.limit is not None and not self.roundings <= self.limit

    def refuse_inexact(self, uncalled: Sequence[str] = ()) -> None:
        """Raise ExportError if the export does not compute what it should.

        Args:
            uncalled: Adapted layers that the model did not call: what is known of the cause.
        """
        if not math.isfinite(self.max_difference):
            raise ExportError(
                "The export cannot be compared with the adapter.",
                got=f"outputs that are not finite, of the export or of the adapter (loaded back by {self.route})",
                expected="finite outputs",
                fix="compare in a dtype that holds them (bfloat16 or float32); if the adapter's own outputs are NaN, "
                "export that of an earlier checkpoint",
            )
        if self.inexact:
            raise ExportError(
                "The export does not compute what the adapter does.",
                got=f"outputs that differ by up to {self.max_difference:.1e}, {self.roundings:.1e} times what one "
                f"rounding to {self.dtype} does to them; the largest is the same at {self.agreement:.2%} of "
                f"{self.positions:,} positions (loaded back by {self.route}){_not_called(uncalled)}",
                expected=f"at most {self.limit:g} roundings",
                fix=READ_ITSELF
                if uncalled
                else "check that the base is the one of the training, and that no hook or code of your own changes "
                "what its layers compute; if that is so, report it. Nothing was written",
            )

    def __str__(self) -> str:
        return (
            f"loaded back by {self.route}: outputs differ by at most {self.max_difference:.1e}{self._judgement()} (the "
            f"adapter changes them by up to {self.max_change:.1e}); the largest is the same at {self.agreement:.2%} of "
            f"{self.positions:,} positions"
        )

    def _judgement(self) -> str:
        if self.expected is not None:
            return f", expected of {self.expected}"
        return "" if self.roundings is None else f", {self.roundings:.1f} roundings to {self.dtype}"


@dataclass(frozen=True)
class Reference:
    """What an adapted model computes for some inputs.

    Attributes:
        inputs: One call each, see `model_outputs`.
        outputs: Shape (positions, outputs) each; padding is left out.
        max_change: Largest absolute change of an output by the adapter.
        rounding: What one rounding does to the outputs.
        intended: What an export with losses is to compute, which the loading is held against; None if `outputs`.
        expected: Where the losses come from.
    """

    inputs: Sequence[Any]
    outputs: list[Tensor]
    max_change: float
    rounding: Rounding
    intended: list[Tensor] | None = None
    expected: str | None = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Any], dtype: torch.dtype | None = None) -> Reference:
        """Call a model with its adapter, without, and with its layers' outputs rounded.

        Args:
            model: With adapters.
            inputs: One call each; see `model_outputs`.
            dtype: That the export rounds weights to, where that is coarser than what the model computes in.

        Raises:
            ConfigError: The inputs have no position to compare.
        """
        calls = [partial(_positions, model, values) for values in inputs]
        outputs = [call() for call in calls]
        _refuse_empty(outputs)
        with adapter_disabled(model):
            change = max(_largest(call(), wanted) for call, wanted in zip(calls, outputs, strict=True))
        return cls(inputs, outputs, change, measured_rounding(model, calls, outputs, dtype))

    def lossy(self, model: nn.Module, lora: StoredLora, reason: str) -> Reference:
        """For an export that is to lose something: what its factors compute in the adapted model."""
        with lora_applied(model, lora):
            return replace(self, intended=[_positions(model, values) for values in self.inputs], expected=reason)

    def compare(self, model: nn.Module, route: str) -> Certificate:
        """Hold another model against it.

        Args:
            model: The export, loaded back.
            route: How it was loaded, for the certificate.
        """
        found = [_positions(model, values) for values in self.inputs]
        pairs = list(zip(found, self.outputs, strict=True))
        positions = sum(len(rows) for rows in self.outputs)
        largest = torch.tensor([_largest(*pair) for pair in pairs]).max().item()
        same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
        plain = Certificate(route, positions, largest, self.max_change, same / positions, expected=self.expected)
        if self.intended is None and self.expected is not None:
            return plain
        wanted = self.outputs if self.intended is None else self.intended
        rows = torch.cat([row_differences(a, b) for a, b in zip(found, wanted, strict=True)])
        dtype = str(self.rounding.dtype).removeprefix("torch.")
        return replace(plain, roundings=self.rounding.count(rows), limit=self.rounding.limit, dtype=dtype)


def _not_called(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"; adapted layers that the model does not call: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _refuse_empty(outputs: list[Tensor]) -> None:
    if not outputs or any(rows.numel() == 0 for rows in outputs):
        raise ConfigError(
            "There is nothing to compare the export on.",
            got="no inputs" if not outputs else "inputs without a position, all of it padding perhaps",
            expected="at least one token",
            fix="name other inputs, or leave them out for those that language models have by default",
        )


def _positions(model: nn.Module, values: Any) -> Tensor:
    outputs = model_outputs(model, values)
    mask = values.get("attention_mask") if isinstance(values, dict) else None
    if mask is not None and mask.shape == outputs.shape[:-1]:
        return outputs[mask.bool().cpu()]
    return outputs.flatten(0, -2)


def _largest(some: Tensor, others: Tensor) -> float:
    # Masked outputs are infinite on both sides.
    return torch.where(some == others, 0.0, (some - others).abs()).max().item()
