"""A start as plain LoRA: the polynomial coefficients wait until a step."""

from __future__ import annotations

from torch import nn

from pera_lightning.injection import adapted_layers


def hold_coefficients(model: nn.Module) -> None:
    """Keep h as it is in the coming optimizer step, by taking its gradients away.

    h starts at zero, so that the adapter is of order 1 as long as this is called before every step. It stays a
    trainable parameter with a gradient in every backward pass, as DistributedDataParallel wants it.

    Args:
        model: A model with adapters.
    """
    for _, layer in adapted_layers(model):
        if layer.pera_h is not None:
            # Not zeros: optimizers skip what has none, moments and weight decay included.
            layer.pera_h.grad = None
