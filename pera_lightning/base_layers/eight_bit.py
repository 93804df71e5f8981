"""bitsandbytes' `Linear8bitLt` (LLM.int8): one scale for each row of the weight."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from pera_lightning.base_layers.base import Base
from pera_lightning.base_layers.bitsandbytes_library import bitsandbytes, loaded_bitsandbytes

LARGEST = 127.0
"""What the largest entry of a row is stored as."""


class EightBitBase(Base):
    """`bitsandbytes.nn.Linear8bitLt` with 8-bit weights.

    With `has_fp16_weights=True` the layer keeps 16-bit weights and quantises them in every step: it saves no memory,
    and is not accepted.
    """

    name = "bitsandbytes Linear8bitLt (has_fp16_weights=False)"

    def accepts(self, layer: Any) -> bool:
        """Whether `layer` stores 8-bit weights, or will once it is moved to its device."""
        library = loaded_bitsandbytes()
        if library is None or not isinstance(layer, library.nn.Linear8bitLt):
            return False
        return not layer.state.has_fp16_weights

    def plain_forward(self) -> Callable[..., Any]:
        """That of `Linear8bitLt`."""
        return cast("Callable[..., Any]", bitsandbytes().nn.Linear8bitLt.forward)

    def dtype(self, layer: Any) -> torch.dtype:
        """That of the bias, else float16, in which LLM.int8 computes; the weight's own is not on record."""
        return torch.float16 if layer.bias is None else layer.bias.dtype

    def quantization(self, layer: Any) -> str | None:
        """Always "int8"."""
        return "int8"

    def written_dtype(self, layer: Any) -> torch.dtype:
        """float16, which bitsandbytes quantises from; that of the weight while it is not quantised yet."""
        return layer.weight.dtype if _scales_of(layer) is None else torch.float16

    def scales(self, layer: Any) -> list[Tensor]:
        """The largest absolute value of each row."""
        scales = _scales_of(layer)
        return [] if scales is None else [scales]

    def weight(self, layer: Any) -> Tensor:
        """The weight that the stored bytes stand for, float32."""
        scales = _scales_of(layer)
        if scales is None:
            return layer.weight.detach()
        return layer.weight.detach() * (scales.float() / LARGEST).unsqueeze(1)

    @torch.no_grad()
    def rounding(self, layer: Any, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor | None:
        """Half of a row's step; and what the weight was before is not on record: bfloat16 at worst."""
        scales = _scales_of(layer)
        if scales is None:
            return None
        return scales.float()[rows] / LARGEST / 2 + values.abs() * (torch.finfo(torch.bfloat16).eps / 2)

    @torch.no_grad()
    def write(self, layer: Any, weight: Tensor) -> None:
        """Quantise `weight` row by row and store it."""
        if _scales_of(layer) is None:
            layer.weight.copy_(weight)
            return
        values, scales, _ = bitsandbytes().functional.int8_vectorwise_quant(weight.to(torch.float16))
        _store(layer, values, scales)

    def prepare(self, layer: Any) -> None:
        """Have bitsandbytes say once, not in every layer of every step, that it computes in float16."""
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_say_cast_once)

    def snapshot(self, layer: Any) -> Any:
        """The bytes and their scales."""
        scales = _scales_of(layer)
        return layer.weight.detach().clone(), None if scales is None else scales.clone()

    @torch.no_grad()
    def restore(self, layer: Any, snapshot: Any) -> None:
        """Put bytes and scales back."""
        values, scales = snapshot
        if scales is None:
            layer.weight.copy_(values)
        else:
            _store(layer, values, scales)


def _scales_of(layer: Any) -> Tensor | None:
    """Largest absolute value of each row; None while the weight is not quantised yet."""
    # The first forward pass moves it from the parameter to the layer's state.
    return getattr(layer.weight, "SCB", None) if layer.state.SCB is None else layer.state.SCB


def _store(layer: Any, values: Tensor, scales: Tensor) -> None:
    layer.weight.data = values
    place = layer.weight if layer.state.CB is None else layer.state
    place.CB, place.SCB = layer.weight.data, scales


_casts_said: set[str] = set()


def _say_cast_once(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if "inputs will be cast" not in message:
        return True
    first = message not in _casts_said
    _casts_said.add(message)
    return first
