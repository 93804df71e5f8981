"""A mistake of bitsandbytes on CPUs: 4-bit weights whose rows are not made of whole blocks."""

from __future__ import annotations

import copy
import functools
import warnings

import torch

from pera_lightning.base_layers.bitsandbytes_library import bitsandbytes


def warn_of_narrow_rows(in_features: int, blocksize: int) -> None:
    """Warn where this machine's bitsandbytes unpacks rows of this width wrongly.

    Seen with 0.50 on CPUs with AVX-512, whose kernel begins every row with a block of its own: a block that two rows
    share is unpacked with the scale of another one. GPUs and other CPUs do it right.
    """
    if in_features % blocksize and unpacks_wrongly(in_features, blocksize):
        warnings.warn(
            f"bitsandbytes unpacks 4-bit weights wrongly on this CPU where a layer's inputs ({in_features}) are no "
            f"multiple of a block ({blocksize} weights): the model computes something else than on a GPU. Use a GPU, "
            "a block size that divides the inputs, or int8.",
            stacklevel=2,
        )


@functools.cache
def unpacks_wrongly(in_features: int, blocksize: int) -> bool:
    """Whether the same bits stand for other weights when they are unpacked as rows than as one long row."""
    functional = bitsandbytes().functional
    # Rows grow, so that no two blocks have the same scale.
    weight = torch.ones(2 * blocksize, in_features).cumsum(0)
    bits, state = functional.quantize_4bit(weight, blocksize=blocksize)
    as_one_row = copy.copy(state)
    as_one_row.shape = torch.Size((1, weight.numel()))
    unpacked = functional.dequantize_4bit(bits, state)
    return not torch.equal(unpacked.flatten(), functional.dequantize_4bit(bits, as_one_row).flatten())
