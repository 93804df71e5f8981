"""`diff`: two adapters beside each other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pera_lightning.cli.screen import show
from pera_lightning.errors import AdapterFileError

if TYPE_CHECKING:
    from torch import Tensor

    from pera_lightning.checkpoint.several.adapter_comparison import Factors
    from pera_lightning.export.lora.plain_lora import PeraTensors


def diff(first: str, second: str) -> None:
    """Compare the weight changes of two adapters, layer by layer, without their base model.

    Prints the cosine of the angle between them, both Frobenius norms and the ratio of the norms. Modules saved whole,
    token rows and biases are left out.

    Args:
        first: Folder of an adapter.
        second: Folder of another one, of any rank and order, for the same base.
    """
    from pera_lightning.checkpoint.adapter_mismatch import form_difference
    from pera_lightning.checkpoint.several.adapter_comparison import compare_layers
    from pera_lightning.export.lora.plain_lora import PeraTensors

    one, other = PeraTensors.of(first), PeraTensors.of(second)
    _refuse_other_layers(first, one, second, other)
    difference = form_difference(one.manifest, other.manifest)
    show(f"options: {difference or 'the same'}")
    show(compare_layers((_name(first), _name(second)), _factors(one), _factors(other)))


def _refuse_other_layers(first: str, one: PeraTensors, second: str, other: PeraTensors) -> None:
    if one.manifest.layers.keys().isdisjoint(other.manifest.layers):
        names = (next(iter(adapter.manifest.layers)) for adapter in (one, other))
        raise AdapterFileError(
            "The adapters have no layer in common.",
            got=" and ".join(f"{folder} with {name!r}" for folder, name in zip((first, second), names, strict=True)),
            expected="adapters of one base model that adapt the same layers, or some of them",
            fix="compare adapters that were trained on the same model",
        )


def _name(folder: str) -> str:
    from pera_lightning.storage.remote import place

    return place(folder).name or folder


def _left_and_right(adapter: PeraTensors, layer: str) -> tuple[Tensor, Tensor]:
    down, up = adapter.factors(layer)
    return up, down


def _factors(adapter: PeraTensors) -> dict[str, Factors]:
    return {name: partial(_left_and_right, adapter, name) for name in adapter.manifest.layers}
