"""Fused kernels for CUDA GPUs, in Triton; nothing here imports Triton before a kernel is needed.

May import the mathematics around them. Open `adapter.py` first, and docs/kernels.md beside it.
"""

from pera_lightning.functional.kernels.availability import unavailable_reason

__all__ = ["unavailable_reason"]
