"""Quantising one linear layer with bitsandbytes."""

from __future__ import annotations

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.four_bit import BLOCKSIZE
from pera_lightning.base_layers.library import bitsandbytes, check_bitsandbytes
from pera_lightning.base_layers.registry import base_of, expect_base
from pera_lightning.errors import ConfigError, TargetError

Quantization = Literal["nf4", "nf4-dq", "fp4", "int8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def check_quantization(
    quantization: str,
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
    if quantization == "int8" and (blocksize, compute_dtype, quant_storage) != (None, None, torch.uint8):
        raise ConfigError(
            "int8 has one scale for each row and computes in float16: it has no such option.",
            got=f"int8 with blocksize={blocksize}, compute_dtype={compute_dtype}, quant_storage={quant_storage}",
            expected="int8 without them",
            fix="leave them out, or use nf4",
        )
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


def check_layer(layer: nn.Module, quantization: str, quant_storage: torch.dtype = torch.uint8) -> None:
    """Raise TargetError unless `quantize_linear` can take this layer."""
    base = base_of(layer)
    floating = base is not None and base.quantization(layer) is None and base.dtype(layer) in FLOATS
    if base is None or not base.linear or not floating:
        raise TargetError(
            "This layer cannot be quantised.",
            got=f"{type(layer).__name__} of dtype {getattr(layer.weight, 'dtype', None)}",
            expected="a linear layer of float32, bfloat16 or float16",
            fix="leave the layer out of the quantisation",
        )
    packed = math.ceil(base.weight(layer).numel() / 2)
    # A single element bitsandbytes would take for a transposed weight.
    if quantization != "int8" and (packed % quant_storage.itemsize or packed <= quant_storage.itemsize):
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
    in_features, out_features = base.features(layer)
    weight, bias = base.weight(layer).detach(), cast("Tensor | None", layer.bias)
    device = weight.device if device is None else device
    library: Any = bitsandbytes()
    # On meta the constructors allocate and draw nothing.
    if quantization == "int8":
        new = library.nn.Linear8bitLt(in_features, out_features, False, has_fp16_weights=False, device="meta")
        # Its constructor quantises what comes from the CPU only.
        new.weight = library.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    else:
        new = library.nn.Linear4bit(in_features, out_features, False, compute_dtype or weight.dtype, device="meta")
        new.quant_storage = quant_storage
        new.weight = library.nn.Params4bit(
            weight,
            requires_grad=False,
            blocksize=blocksize or BLOCKSIZE,
            compress_statistics=quantization.endswith("-dq"),
            quant_type=quantization.removesuffix("-dq"),
            quant_storage=quant_storage,
            module=new,
        ).to(device)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().to(device), requires_grad=False)
    # What transformers notes too: a merge makes a layer of this class again.
    new.source_cls = type(layer)
    return new.train(layer.training)
