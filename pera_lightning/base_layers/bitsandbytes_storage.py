"""The ways in which bitsandbytes can store the base: everything that tells one from another.

A new one of bitsandbytes' is an entry in `QUANTIZATIONS` (with a class, if it is of a new kind) and a name in
`Quantization`; what reads such layers is a `Base` beside it. Nothing else compares names of quantisations: the rest of
the package asks the entry. Layers of another library, quantised before the adapter comes, take a `Base` alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.four_bit import BLOCKSIZE
from pera_lightning.errors import ConfigError

Quantization = Literal["nf4", "nf4-dq", "fp4", "int8"]
"""What users call them; a literal, so that `--help` can list them."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own under double quantisation."""
_FLOAT = 4
_TABLE_OF_4_BITS, _TABLE_OF_8_BITS = 16 * _FLOAT, 256 * _FLOAT


class BitsandbytesStorage(ABC):
    """How bitsandbytes stores weights, and what follows from it."""

    packed: ClassVar[bool]
    """Whether weights share a byte: then block sizes and dtypes of products and of storage can be chosen."""
    keeps_codes: ClassVar[bool]
    """Whether rounding the weights to another dtype before leaves (nearly all of) the stored codes as they are."""

    @abstractmethod
    def refuse_choices(self, quantization: str, given: str) -> None:
        """Raise ConfigError if neither block size nor dtypes can be chosen; both in words."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `BitsAndBytesConfig`."""

    @abstractmethod
    def stored_bytes(self, shape: torch.Size) -> int:
        """Bytes of a weight (out, in): entries, scales and tables."""

    @abstractmethod
    def empty_layer(self, library: Any, features: tuple[int, int], dtype: torch.dtype) -> nn.Module:
        """A layer of bitsandbytes without a weight and without a bias, on the meta device.

        Args:
            library: bitsandbytes.
            features: Sizes of the layer, `(in, out)`.
            dtype: Of the products, where it can be chosen.
        """

    @abstractmethod
    def parameter(
        self, library: Any, weight: Tensor, layer: nn.Module, blocksize: int | None, quant_storage: torch.dtype
    ) -> nn.Parameter:
        """The parameter that quantises a floating weight (out, in) when it is moved to its device."""


@dataclass(frozen=True)
class FourBits(BitsandbytesStorage):
    """Two weights to a byte, blocks with a scale each.

    Attributes:
        quant_type: The sixteen values: "nf4" or "fp4".
        nested: Whether the scales are quantised too (double quantisation).
    """

    quant_type: str
    nested: bool = False
    packed: ClassVar[bool] = True
    keeps_codes: ClassVar[bool] = True

    def refuse_choices(self, quantization: str, given: str) -> None:
        """Raise nothing: all of them can be chosen."""

    def options(self) -> dict[str, Any]:
        """See `BitsandbytesStorage`."""
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.quant_type,
            "bnb_4bit_use_double_quant": self.nested,
        }

    def stored_bytes(self, shape: torch.Size) -> int:
        """See `BitsandbytesStorage`."""
        entries = shape.numel()
        blocks, packed = math.ceil(entries / BLOCKSIZE), math.ceil(entries / 2) + _TABLE_OF_4_BITS
        if not self.nested:
            return packed + _FLOAT * blocks
        # The scales in 8 bits, and a mean that was subtracted from them.
        return packed + blocks + _FLOAT * math.ceil(blocks / NESTED_BLOCK) + _TABLE_OF_8_BITS + _FLOAT

    def empty_layer(self, library: Any, features: tuple[int, int], dtype: torch.dtype) -> nn.Module:
        """See `BitsandbytesStorage`."""
        layer: nn.Module = library.nn.Linear4bit(*features, False, dtype, device="meta")
        return layer

    def parameter(
        self, library: Any, weight: Tensor, layer: Any, blocksize: int | None, quant_storage: torch.dtype
    ) -> nn.Parameter:
        """See `BitsandbytesStorage`."""
        layer.quant_storage = quant_storage
        new: nn.Parameter = library.nn.Params4bit(
            weight,
            requires_grad=False,
            blocksize=blocksize or BLOCKSIZE,
            compress_statistics=self.nested,
            quant_type=self.quant_type,
            quant_storage=quant_storage,
            module=layer,
        )
        return new


@dataclass(frozen=True)
class EightBits(BitsandbytesStorage):
    """LLM.int8(): a byte for each weight, a scale for each row, products in float16."""

    packed: ClassVar[bool] = False
    # The rounding of the source alone changes a quarter of them, each by one step.
    keeps_codes: ClassVar[bool] = False

    def refuse_choices(self, quantization: str, given: str) -> None:
        """See `BitsandbytesStorage`."""
        raise ConfigError(
            f"{quantization} has one scale for each row and computes in float16: it has no such option.",
            got=f"{quantization} with {given}",
            expected=f"{quantization} without them",
            fix="leave them out, or use nf4",
        )

    def options(self) -> dict[str, Any]:
        """See `BitsandbytesStorage`."""
        return {"load_in_8bit": True}

    def stored_bytes(self, shape: torch.Size) -> int:
        """See `BitsandbytesStorage`."""
        return shape.numel() + _FLOAT * shape[0]

    def empty_layer(self, library: Any, features: tuple[int, int], dtype: torch.dtype) -> nn.Module:
        """See `BitsandbytesStorage`."""
        layer: nn.Module = library.nn.Linear8bitLt(*features, False, has_fp16_weights=False, device="meta")
        return layer

    def parameter(
        self, library: Any, weight: Tensor, layer: nn.Module, blocksize: int | None, quant_storage: torch.dtype
    ) -> nn.Parameter:
        """See `BitsandbytesStorage`."""
        # Its constructor quantises what comes from the CPU only.
        new: nn.Parameter = library.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        return new


QUANTIZATIONS: dict[Quantization, BitsandbytesStorage] = {
    "nf4": FourBits("nf4"),
    "nf4-dq": FourBits("nf4", nested=True),
    "fp4": FourBits("fp4"),
    "int8": EightBits(),
}
"""Name -> how it is stored, in the order in which messages list them."""
