"""A plain LoRA as a file of factors under the layers' own names, for code that adds `up @ down` itself."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.lora.plain_lora import PlainLora

FACTORS_FILE = "lora_factors.safetensors"


def write_factors(lora: PlainLora, folder: Path) -> None:
    """Write `<layer>.down` (rank, in) and `<layer>.up` (out, rank); the weight change is `up @ down`, no scaling left.

    Modules saved whole are in the file under their own names.

    Args:
        lora: The LoRA.
        folder: Where to.
    """
    tensors = {f"{name}.{side}": getattr(part, side) for name, part in lora.factors.items() for side in part._fields}
    stored = {key: value.cpu().contiguous().clone() for key, value in (tensors | lora.saved).items()}
    save_file(stored, folder / FACTORS_FILE, metadata={"format": "pt", "weight_change": "up @ down"})


def read_factors(folder: Path) -> StoredLora:
    """What the file holds."""
    tensors = load_file(folder / FACTORS_FILE)
    names = [key.removesuffix(".down") for key in tensors if key.endswith(".down")]
    factors = {name: LoraFactors(tensors.pop(f"{name}.down"), tensors.pop(f"{name}.up")) for name in names}
    return StoredLora(factors, tensors)
