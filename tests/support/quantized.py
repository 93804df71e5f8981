"""Layers and models quantised by bitsandbytes, and what their stored bits stand for, computed without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Relative error of a normally distributed weight (Frobenius norm) that each kind must stay below.
QUANTIZATION_ERROR = {"nf4": 0.11, "nf4-dq": 0.11, "fp4": 0.14, "int8": 0.01}

# Dettmers et al., 2023, appendix E: the 16 values of NF4.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def nf4_weight(layer: Any) -> Tensor:
    """The weight that a Linear4bit in NF4 without double quantisation stands for, float32."""
    packed = layer.weight.data.view(torch.uint8).flatten()
    # The first of two weights is in the high half of a byte.
    indices = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    scales = layer.weight.quant_state.absmax.repeat_interleave(layer.weight.quant_state.blocksize)
    count = layer.in_features * layer.out_features
    return (torch.tensor(NF4)[indices[:count]] * scales[:count]).view(layer.out_features, layer.in_features)


def int8_weight(layer: Any) -> Tensor:
    """The weight that a Linear8bitLt stands for, float32."""
    scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    return layer.weight.data.float() * scales.float()[:, None] / 127


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a quantised model stores, as bytes that compare exactly."""
    return {
        name: value.detach().contiguous().view(torch.uint8).clone()
        for name, value in model.state_dict().items()
        if value.numel() and ".pera_" not in name
    }


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
