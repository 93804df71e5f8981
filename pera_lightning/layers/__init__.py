"""The adapted layer."""

from pera_lightning.layers.pera_linear import PeraLinear

__all__ = ["PeraLinear"]
