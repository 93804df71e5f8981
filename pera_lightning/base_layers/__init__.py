"""The frozen layers that an adapter can sit on: reading and writing their weights, however they are stored.

May import the mathematics. Open `base.py` for the contract, `registry.py` for who keeps it; a kind has its own file.
What quantises a base, with bitsandbytes, is in the files named so: `bitsandbytes_storage.py` first.
"""

from pera_lightning.base_layers.base import Base
from pera_lightning.base_layers.bitsandbytes_library import bitsandbytes, check_bitsandbytes
from pera_lightning.base_layers.bitsandbytes_linear import check_layer, check_quantization, quantize_linear
from pera_lightning.base_layers.bitsandbytes_storage import QUANTIZATIONS, Quantization
from pera_lightning.base_layers.four_bit import set_compute_dtype
from pera_lightning.base_layers.plain_call import adaptable_base, beyond_multiplying, replaced_forward
from pera_lightning.base_layers.registry import base_of, describe_supported, expect_base, is_linear_like

__all__ = [
    "QUANTIZATIONS",
    "Base",
    "Quantization",
    "adaptable_base",
    "base_of",
    "beyond_multiplying",
    "bitsandbytes",
    "check_bitsandbytes",
    "check_layer",
    "check_quantization",
    "describe_supported",
    "expect_base",
    "is_linear_like",
    "quantize_linear",
    "replaced_forward",
    "set_compute_dtype",
]
