"""What the measurements of one run share: the device, the last base, and how long the rounds of a row may take."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu import card
from benchmarks.gpu.random_models import base_bytes, build
from benchmarks.gpu.shapes import SHAPES, Architecture, tiny
from pera_lightning.injection import stored_bytes

LOGITS = 2 + 4 + 4
"""Bytes of a logit at least: as the head gives it, in float32, and its gradient."""


class SkippedError(Exception):
    """A row that is not to be measured here, and why."""


class Session:
    """One run on one device.

    Args:
        device: Where everything is measured.
        is_tiny: Whether all models are tiny: a trial of the program, not of the card.
        seconds: Of the rounds of a row.
    """

    def __init__(self, device: torch.device, *, is_tiny: bool, seconds: float) -> None:
        self.device = device
        self.is_tiny = is_tiny
        self.seconds = seconds
        self._base: tuple[Any, Any] = (None, None)

    def architecture(self, shape: str, **changes: Any) -> Architecture:
        """The sizes of a shape, in a trial tiny ones."""
        found = SHAPES[shape]
        return {**(tiny(found) if self.is_tiny else found), **changes}

    def base(self, shape: str, quantization: str | None = None, **changes: Any) -> Any:
        """A frozen base; that of the last call is kept, for the next row often has the same."""
        key = (shape, quantization, tuple(changes.items()))
        if self._base[0] != key:
            self.forget()
            built = build(self.architecture(shape, **changes), self.device, quantization=quantization)
            self._base = (key, built)
        return self._base[1]

    def forget(self) -> None:
        """Let go of the base, and of whatever a row has left."""
        self._base = (None, None)
        card.release(self.device)

    def check_fits(self, architecture: Architecture, quantization: str | None, tokens: int = 0) -> None:
        """Refuse what cannot fit: less than its weights and the logits of so many tokens nothing takes.

        Raises:
            SkippedError: The card has not even that.
        """
        free = card.free(self.device)
        if free is None:
            return
        held = 0 if self._base[1] is None else stored_bytes(self._base[1])
        weights, logits = base_bytes(architecture, quantization), LOGITS * tokens * architecture["vocab_size"]
        if weights + logits > free + held:
            raise SkippedError(
                f"does not fit: the weights take {weights / 2**30:.1f} GB, the logits {logits / 2**30:.1f} GB at "
                f"least, and {(free + held) / 2**30:.1f} GB are free"
            )
