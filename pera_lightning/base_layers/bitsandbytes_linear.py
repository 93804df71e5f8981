"""Quantising one linear layer with bitsandbytes."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.bitsandbytes_library import bitsandbytes, check_bitsandbytes
from pera_lightning.base_layers.bitsandbytes_storage import QUANTIZATIONS, Quantization
from pera_lightning.base_layers.registry import base_of, expect_base
from pera_lightning.errors import ConfigError, TargetError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def check_quantization(
    quantization: Quantization,
    blocksize: int | None = None,
    compute_dtype: torch.dtype | None = None,
    quant_storage: torch.dtype = torch.uint8,
) -> None:
    """Raise ConfigError unless bitsandbytes is there and the options go together."""
    if quantization not in QUANTIZATIONS:
        raise ConfigError(
            "quantization names how the base's weights are stored.",
            got=repr(quantization),
            expected=", ".join(QUANTIZATIONS),
            fix="use nf4-dq for the smallest base, or leave quantization out for a floating one",
        )
    if (blocksize, compute_dtype, quant_storage) != (None, None, torch.uint8):
        given = f"blocksize={blocksize}, compute_dtype={compute_dtype}, quant_storage={quant_storage}"
        QUANTIZATIONS[quantization].refuse_choices(quantization, given)
    if blocksize is not None and blocksize not in BLOCKSIZES:
        raise ConfigError(
            "blocksize is the number of weights that share one scale.",
            got=repr(blocksize),
            expected=f"one of {', '.join(map(str, BLOCKSIZES))}",
            fix="use 64, the usual one",
        )
    if compute_dtype not in (None, *FLOATS) or quant_storage not in (torch.uint8, *FLOATS):
        raise ConfigError(
            "4-bit layers compute and are stored in few dtypes.",
            got=f"compute_dtype={compute_dtype!r}, quant_storage={quant_storage!r}",
            expected="float32, bfloat16 or float16 of torch; for quant_storage also torch.uint8",
            fix="leave them out",
        )
    check_bitsandbytes()
    bitsandbytes()


def check_layer(layer: nn.Module, quantization: Quantization, quant_storage: torch.dtype = torch.uint8) -> None:
    """Raise TargetError unless `quantize_linear` can take this layer."""
    base = base_of(layer)
    floating = base is not None and base.quantization(layer) is None and base.dtype(layer) in FLOATS
    if base is None or not base.linear or not floating:
        raise TargetError(
            "This layer cannot be quantised.",
            got=f"{type(layer).__name__} of dtype {getattr(getattr(layer, 'weight', None), 'dtype', None)}",
            expected="a linear layer of float32, bfloat16 or float16",
            fix="leave the layer out of the quantisation",
        )
    packed = math.ceil(base.weight(layer).numel() / 2)
    # A single element bitsandbytes would take for a transposed weight.
    if QUANTIZATIONS[quantization].packed and (packed % quant_storage.itemsize or packed <= quant_storage.itemsize):
        raise TargetError(
            "This layer does not fill whole elements of quant_storage.",
            got=f"{type(layer).__name__} of {base.weight(layer).numel()} weights, quant_storage={quant_storage}",
            expected=f"more than one element of {quant_storage.itemsize} bytes, two weights to a byte",
            fix="leave the layer out of the quantisation, or set quant_storage=torch.uint8",
        )


def quantize_linear(
    layer: nn.Module,
    quantization: Quantization,
    *,
    blocksize: int | None = None,
    compute_dtype: torch.dtype | None = None,
    quant_storage: torch.dtype = torch.uint8,
    device: torch.device | None = None,
) -> nn.Module:
    """A quantised layer in the place of a dense one; the bias is shared, the dense weight is not kept.

    Args:
        layer: A floating linear layer (also a Conv1D), float32, bfloat16 or float16.
        quantization: "nf4", "nf4-dq" (the scales are quantised too), "fp4" or "int8".
        blocksize: Weights that share one scale (4-bit only); 64 by default.
        compute_dtype: Dtype of the products (4-bit only); by default the weight's.
        quant_storage: Dtype that the 4-bit weights are stored as; FSDP wants that of the other weights.
        device: Where the new weight lies; by default where the old one does.

    Raises:
        ConfigError: The options do not go together, or bitsandbytes is missing.
        TargetError: The layer is of no kind that can be quantised.
    """
    check_quantization(quantization, blocksize, compute_dtype, quant_storage)
    check_layer(layer, quantization, quant_storage)
    base = expect_base(layer)
    weight, bias = base.weight(layer).detach(), cast("Tensor | None", layer.bias)
    device = weight.device if device is None else device
    library, stored = bitsandbytes(), QUANTIZATIONS[quantization]
    # On meta the constructors allocate and draw nothing.
    new: Any = stored.empty_layer(library, base.features(layer), compute_dtype or weight.dtype)
    new.weight = stored.parameter(library, weight, new, blocksize, quant_storage).to(device)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().to(device), requires_grad=False)
    # What transformers notes too: a merge makes a layer of this class again.
    new.source_cls = type(layer)
    quantized: nn.Module = new.train(layer.training)
    return quantized
