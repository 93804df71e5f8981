"""Models out of GGUF files: how transformers unpacks them, and that what comes out can be computed with."""

from __future__ import annotations

from typing import Any

from torch import nn

from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.storage.gguf_header import GgufDamage


def dense_gguf() -> dict[str, Any]:
    """Options that make transformers unpack GGUF blocks on loading.

    Where the `kernels` package is installed, newer transformers versions keep the blocks packed in layers of
    their own, which cannot be trained through; older ones always unpack and have no such option.
    """
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def check_finite(model: nn.Module) -> None:
    """Raise GgufDamage if a weight is not finite: one damaged scale of a block spoils all values of it."""
    infinite = not_finite(dict(model.named_parameters()))
    if infinite:
        raise GgufDamage(f"{describe_infinite(infinite)} are not finite when its blocks are unpacked")
