"""Checksums of an adapter's two files, by which damage and files of two saves are found.

They keep nobody from changing a file on purpose: whoever can do that can change its checksum too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from pera_lightning.errors import AdapterFileError
from pera_lightning.storage.remote import Place

KEY = "checksums"
"""Entry of the config that holds them; earlier versions wrote none."""
_FREE = (KEY, "base_model_name_or_path", "base_quantization", "base_sample", "base_record", "versions")
"""What the checksum of the config leaves out: what is known of the base, which is compared with the base itself, and
may be changed by hand where that was moved."""


@dataclass(frozen=True)
class Checksums:
    """What an adapter's config says of itself and of the weights.

    Attributes:
        config: Of the config, as it says.
        weights: Of the weights, as it says.
        computed: Of the config as it is.
    """

    config: str
    weights: str
    computed: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Checksums | None:
        """Those in the content of a config; None where an earlier version wrote it."""
        if values.get(KEY) is None:
            return None
        told = values[KEY] if isinstance(values[KEY], dict) else {}
        config, weights = (str(told.get(name))[:64] for name in ("config", "weights"))
        return cls(config, weights, _of_config(values))


def with_checksums(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of an adapter's config, with checksums of itself and of the weights.

    Args:
        values: Plain types.
        tensors: As they are stored, on the CPU.
    """
    # As they are read again, where all names are texts.
    values = json.loads(json.dumps(values))
    return {**values, KEY: {"config": _of_config(values), "weights": of_weights(tensors)}}


def of_weights(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names, dtypes, shapes and values of tensors on the CPU, in whatever order they are."""
    found = xxhash.xxh3_128()
    for name in sorted(tensors):
        value = tensors[name].detach()
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        content: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(content)
    return found.hexdigest()


def damage(told: Checksums | None, tensors: Mapping[str, Tensor], folder: Place) -> AdapterFileError | None:
    """An error if config and weights are not as one save wrote them.

    Args:
        told: What the config says; None: nothing is known.
        tensors: Content of the weights' file.
        folder: The adapter's folder, for the message.
    """
    if told is None:
        return None
    if told.config != told.computed:
        return AdapterFileError(
            "The adapter's config is not as it was written.",
            got=f"{folder}: its checksum is {told.computed}, and it says {told.config!r}",
            expected="the file of one save, without damage",
            fix=f"copy or save it again; if it was changed on purpose, take its entry {KEY!r} out",
        )
    computed = of_weights(tensors)
    if told.weights == computed:
        return None
    return AdapterFileError(
        "The adapter's weights are not those that its config was written with.",
        got=f"{folder}: the weights' checksum is {computed}, and the config says {told.weights!r}",
        expected="both files of one save, without damage",
        fix=f"copy or save both again; if the weights were changed on purpose, take {KEY!r} out of the config",
    )


def _of_config(values: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in values.items() if name not in _FREE}
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
