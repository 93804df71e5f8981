"""Read and write access to the frozen layers that an adapter can sit on."""

from pera_lightning.bases.base import Base
from pera_lightning.bases.registry import base_of, describe_supported, is_linear_like

__all__ = ["Base", "base_of", "describe_supported", "is_linear_like"]
