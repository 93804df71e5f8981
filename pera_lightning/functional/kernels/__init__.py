"""Fused kernels for CUDA GPUs, in Triton; nothing here imports Triton before a kernel is needed."""

from pera_lightning.functional.kernels.availability import unavailable_reason

__all__ = ["unavailable_reason"]
