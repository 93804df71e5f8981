"""A start as plain LoRA: the polynomial coefficients wait until a step."""

from __future__ import annotations

from torch import nn

from pera_lightning.injection import adapted_layers


class HeldCoefficients:
    """Keeps h as it is in optimizer steps, by taking its gradients away before them.

    h starts at zero, so that the adapter is of order 1 as long as it is held. It stays a trainable parameter with a
    gradient in every backward pass, as DistributedDataParallel wants it.
    """

    def __init__(self) -> None:
        self._coefficients: list[nn.Parameter] = []

    def find(self, model: nn.Module) -> None:
        """Find the coefficients of a model; once, as a walk over a large one takes longer than to hold them."""
        self._coefficients = [layer.pera_h for _, layer in adapted_layers(model) if layer.pera_h is not None]

    def hold(self) -> None:
        """Keep h as it is in the coming optimizer step."""
        for h in self._coefficients:
            # Not zeros: optimizers skip what has none, moments and weight decay included.
            h.grad = None

    def forget(self) -> None:
        """A later run may have another model."""
        self._coefficients = []
