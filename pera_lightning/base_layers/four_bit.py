"""bitsandbytes' `Linear4bit`: NF4 or FP4 in blocks, with or without quantised block sizes (double quantisation)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.base import Base
from pera_lightning.base_layers.bitsandbytes_library import bitsandbytes, loaded_bitsandbytes
from pera_lightning.base_layers.narrow_rows import unpacks_wrongly, warn_of_narrow_rows
from pera_lightning.errors import InjectionError

BLOCKSIZE = 64
"""Weights that share one scale, if nothing else is said."""


class FourBitBase(Base):
    """`bitsandbytes.nn.Linear4bit`: two weights to a byte, whose shape tells nothing of (out, in)."""

    name = "bitsandbytes Linear4bit"

    def accepts(self, layer: Any) -> bool:
        """Whether `layer` is a Linear4bit, quantised already or (before it is moved to its device) not yet."""
        library = loaded_bitsandbytes()
        return library is not None and isinstance(layer, library.nn.Linear4bit)

    def plain_forward(self) -> Callable[..., Any]:
        """That of `Linear4bit`."""
        return cast("Callable[..., Any]", bitsandbytes().nn.Linear4bit.forward)

    def dtype(self, layer: Any) -> torch.dtype:
        """The dtype that the weight was quantised from."""
        state = _state_of(layer)
        return layer.weight.dtype if state is None else state.dtype

    def quantization(self, layer: Any) -> str | None:
        """The kind: "nf4" or "fp4", with "-dq" for double quantisation and the block size where it is not 64."""
        weight: Any = layer.weight
        state = _state_of(layer)
        blocksize, nested = (weight.blocksize, weight.compress_statistics) if state is None else _form_of(state)
        # Sharding exchanges the parameter for one that knows nothing of it.
        kind = (weight if state is None else state).quant_type + ("-dq" if nested else "")
        return kind if blocksize == BLOCKSIZE else f"{kind}, blocks of {blocksize}"

    def written_dtype(self, layer: Any) -> torch.dtype:
        """float32, as the scales are; that of the weight while it is not quantised yet."""
        return layer.weight.dtype if _state_of(layer) is None else torch.float32

    def scales(self, layer: Any) -> list[Tensor]:
        """Scales of the blocks, and with double quantisation the scales of those."""
        state = _state_of(layer)
        if state is None:
            return []
        nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        return [state.absmax, state.code, *nested]

    def weight(self, layer: Any) -> Tensor:
        """The weight that the stored bits stand for, float32."""
        state = _state_of(layer)
        if state is None:
            return layer.weight.detach()
        # Not in the dtype it was quantised from: sums with an adapter are rounded once, at their end.
        exact = copy.copy(state)
        exact.dtype = torch.float32
        return bitsandbytes().functional.dequantize_4bit(layer.weight.data, exact)

    @torch.no_grad()
    def rounding(self, layer: Any, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor | None:
        """Half of the way to the farther of a code's neighbours, times the block's scale, which may be wrong too."""
        state = _state_of(layer)
        if state is None:
            return None
        scales, wrong = _scales_of(state)
        scale = scales[(rows * layer.in_features + columns) // state.blocksize]
        codes = state.code.sort().values
        gaps, end = codes.diff(), codes.new_zeros(1)
        if layer.weight.device.type == "cpu" and unpacks_wrongly(layer.in_features, state.blocksize):
            # With the scale of another block.
            return (gaps.amax() / 2 * scale + scales.amax() - scales.amin() + wrong).expand_as(values)
        farther = torch.cat([gaps, end]).maximum(torch.cat([end, gaps])) / 2
        code = (codes - (values / scale.clamp_min(1e-30)).unsqueeze(1)).abs().argmin(1)
        return farther[code] * (scale + wrong) + wrong

    @torch.no_grad()
    def write(self, layer: Any, weight: Tensor) -> None:
        """Quantise `weight` as the layer's own was and store the bits."""
        stored: Any = layer.weight
        state = _state_of(layer)
        if state is None:
            stored.copy_(weight)
            return
        blocksize, nested = _form_of(state)
        bits, new = bitsandbytes().functional.quantize_4bit(
            weight.float().contiguous(),
            blocksize=blocksize,
            compress_statistics=nested,
            quant_type=state.quant_type,
            quant_storage=stored.dtype,
        )
        new.dtype = state.dtype
        _store(layer, bits, new)

    def prepare(self, layer: Any) -> None:
        """Keep bitsandbytes from repacking the weight for inference on CPUs with bf16 instructions.

        It does so in eval mode; the repacked layer lets no gradient through, in train mode neither, and its scales
        are rounded for good. Warns of rows that the CPU cannot unpack.

        Raises:
            InjectionError: It has done so already.
        """
        state = _state_of(layer)
        if state is not None and layer.weight.device.type == "cpu":
            warn_of_narrow_rows(layer.in_features, state.blocksize)
        if getattr(state, "packing_format_for_cpu", False):
            raise InjectionError(
                "A 4-bit layer was repacked for inference on the CPU: no gradient passes through it.",
                got="a model that bitsandbytes has run in eval mode on a CPU with bf16 instructions",
                expected="a model as it was loaded",
                fix="load the model again and inject the adapter before its first use (adapter_disabled(model) "
                "computes what the base does)",
            )
        layer.support_avx512bf16_for_cpu = False

    def snapshot(self, layer: Any) -> Any:
        """The bits and their scales."""
        return layer.weight.detach().clone(), copy.deepcopy(_state_of(layer))

    @torch.no_grad()
    def restore(self, layer: Any, snapshot: Any) -> None:
        """Put bits and scales back."""
        bits, state = snapshot
        if state is None:
            layer.weight.copy_(bits)
        else:
            _store(layer, bits, state)


def set_compute_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Have every 4-bit layer of a model compute its products in `dtype`; inputs and outputs keep theirs."""
    base = FourBitBase()
    for layer in model.modules():
        if base.accepts(layer):
            layer.compute_dtype = dtype  # type: ignore[assignment]
            layer.compute_type_is_set = True  # type: ignore[assignment]


def _state_of(layer: Any) -> Any:
    """Scales and form of the stored bits; None while the weight is not quantised yet."""
    # A converted parameter (FSDP) loses it; the layer keeps it too.
    state = getattr(layer.weight, "quant_state", None)
    return layer.quant_state if state is None else state


def _scales_of(state: Any) -> tuple[Tensor, float]:
    """The scale of each block, and how far one may be from what it was rounded from."""
    if not state.nested:
        return state.absmax, 0.0
    scales = bitsandbytes().functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return scales, float(state.state2.absmax.amax() * state.state2.code.sort().values.diff().amax() / 2)


def _form_of(state: Any) -> tuple[int, bool]:
    return state.blocksize, state.nested


def _store(layer: Any, bits: Tensor, state: Any) -> None:
    layer.weight.data = bits
    layer.weight.quant_state = layer.quant_state = state
