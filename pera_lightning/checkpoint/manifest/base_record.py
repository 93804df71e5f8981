"""What an adapter keeps of its base, to notice that it is put on another one: exact where rounding allows."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import QUANTIZATIONS, base_of
from pera_lightning.checkpoint.manifest.base_sample import frozen_layers
from pera_lightning.layers import PeraLinear

DENSE = "dense"
GGUF = "gguf"
"""Kind of a weight that was unpacked from a GGUF file, whose kind of quantisation is not known."""
LAYERS = 512
WEIGHTS = (16, 64)
"""Weights of a layer: at least, and at most where there are few layers."""
ALL_WEIGHTS = 4096
DIGESTED = 1024
"""Weights of a layer that the digest is of."""
FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SIGNIFICANT = {"bfloat16": (8, -126), "float16": (11, -14), "float32": (24, -126)}
"""Significant bits and least exponent."""
LEAST_NORMAL = 2.0**-14
"""Of float16, which some files are in; what is smaller it rounds more."""
TWICE_ROUNDED = 1.125
"""A weight may have been rounded to float16 before it was rounded to bfloat16."""
SAME_VALUE = 1e-5
"""Largest relative difference of the same code and scale, unpacked on another device."""
SAME_CODE = 0.02
"""Relative difference of the values of one code in 4 bits, where the sources' dtypes round their scales otherwise."""
FEW_CODES = 3
"""Of them, whatever the number of weights, that may get another code where the sources have different dtypes."""
OTHER_CODES = 0.02
"""Share of weights that may get another code when the same weights are quantised in the same way somewhere else."""


@dataclass(frozen=True)
class LayerRecord:
    """What is kept of one layer.

    Attributes:
        kind: "dense", "gguf", or how the weight is quantised.
        format: Of a dense weight the narrowest one that holds it, whatever its dtype; else what it was quantised from.
        digest: Of many of its weights, without the tiny ones.
        values: A few of its weights.
        errors: How far these may be from what they were quantised from; of a dense weight nothing.
    """

    kind: str
    format: str
    digest: str
    values: tuple[float, ...]
    errors: tuple[float, ...] = ()

    def encode(self) -> str:
        """One line of text."""
        return ";".join((self.kind, self.format, self.digest, _written(self.values, 9), _written(self.errors, 9)))

    @classmethod
    def decode(cls, text: str) -> LayerRecord:
        """What `encode` gave.

        Raises:
            ValueError: It gave something else.
            KeyError: The format is none.
        """
        kind, form, digest, values, errors = text.split(";")
        return cls(kind, str(FORMATS[form]).removeprefix("torch."), digest, _read(values), _read(errors))

    def reach(self) -> Iterator[float]:
        """How far each value may be from the one before its last rounding."""
        yield from self.errors or (_half_step(value, self.format) for value in self.values)


def _written(values: Iterable[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}g}" for value in values)


def _read(text: str) -> tuple[float, ...]:
    # To float32 again, which nine digits tell apart.
    values = torch.tensor([float(value) for value in text.split()], dtype=torch.float32)
    return tuple(values.tolist())


def _half_step(value: float, form: str) -> float:
    bits, least = SIGNIFICANT[form]
    exponent = max(math.frexp(value)[1] - 1, least) if value else least
    return math.ldexp(0.5, exponent - bits + 1)


@torch.no_grad()
def base_record(model: nn.Module, *, gguf: bool = False) -> dict[str, str]:
    """A record of each adapted layer (evenly spread ones, of very many), by name.

    Layers whose weights are not here are left out: on the meta device, sharded over processes, or merged; and those
    that share theirs with a module trained whole.

    Args:
        model: A model with adapters.
        gguf: Whether its weights come from a GGUF file.
    """
    layers, count = frozen_layers(model)
    chosen = layers[:: math.ceil(len(layers) / LAYERS) or 1]
    found = {name: _record(layer, values_of(count), gguf) for name, layer in chosen}
    return {name: record.encode() for name, record in found.items() if record is not None}


def values_of(layers: int) -> int:
    """How many weights of each layer are kept where so many are adapted."""
    least, most = WEIGHTS
    return max(least, min(most, ALL_WEIGHTS // max(1, layers)))


def _record(layer: PeraLinear, count: int, gguf: bool) -> LayerRecord | None:
    base = base_of(layer.base_layer)
    if base is None:
        return None
    weight, kind = base.weight(layer.base_layer), base.quantization(layer.base_layer)
    if kind is None:
        return dense_record(weight, count, gguf=gguf)
    rows, columns = _places(weight, count)
    values = weight[rows, columns].float()
    errors = base.rounding(layer.base_layer, rows, columns, values)
    if errors is None:
        # Not quantised yet: that comes with the move to its device.
        return None
    dtype = str(base.dtype(layer.base_layer)).removeprefix("torch.")
    source = dtype if dtype in FORMATS else "float32"
    # What it was quantised from was rounded too.
    reach = [error + _half_step(value, source) for error, value in zip(errors.tolist(), values.tolist(), strict=True)]
    return LayerRecord(kind, source, _digest(_digested(weight)), tuple(values.tolist()), tuple(reach))


def dense_record(weight: Tensor, count: int, *, gguf: bool = False) -> LayerRecord:
    """The record of a floating weight (out, in), which is not copied.

    Args:
        weight: The weight.
        count: Number of values to keep.
        gguf: Whether it was unpacked from a GGUF file.
    """
    rows, columns = _places(weight, count)
    values, digested = weight[rows, columns].float(), _digested(weight)
    fitting = (name for name, dtype in FORMATS.items() if torch.equal(digested.to(dtype).float(), digested))
    # None fits what is no number.
    form = next(fitting, "float32")
    errors: tuple[float, ...] = ()
    if gguf and form == "float32":
        # The blocks of most kinds have 32 weights; four bits, with a scale that need not fit the largest one.
        first = (columns // 32 * 32).unsqueeze(1) + torch.arange(32, device=columns.device)
        blocks = weight[rows.unsqueeze(1), first.clamp(max=weight.shape[1] - 1)].float()
        errors = tuple((blocks.abs().amax(1) / 4).tolist())
    kind = GGUF if errors else DENSE
    return LayerRecord(kind, form, _digest(digested), tuple(values.tolist()), errors)


def record_like(stored: str, weight: Tensor, *, gguf: bool) -> str:
    """The record of a floating weight (out, in) with as many values as another record of its layer has."""
    return dense_record(weight, len(LayerRecord.decode(stored).values), gguf=gguf).encode()


def _places(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    places = torch.linspace(0, weight.numel() - 1, count, dtype=torch.float64).long().to(weight.device)
    return places // weight.shape[1], places % weight.shape[1]


def _digested(weight: Tensor) -> Tensor:
    return weight[_places(weight, min(DIGESTED, weight.numel()))].float().cpu()


def _digest(values: Tensor) -> str:
    kept = torch.where(values.abs() < LEAST_NORMAL, 0.0, values)
    return hashlib.blake2b(struct.pack(f"<{kept.numel()}f", *kept.tolist()), digest_size=6).hexdigest()


def record_difference(stored: Mapping[str, str], present: Mapping[str, str]) -> str | None:
    """In words, if two records are not of the same base; None if they may be.

    Two dense weights in the same format have to be equal. In two formats they may differ by their rounding, and beside
    a quantised one by what that says of its own error.

    Args:
        stored: Of the base that the adapter was trained on.
        present: Of the one at hand.
    """
    pairs = {
        name: (LayerRecord.decode(stored[name]), LayerRecord.decode(present[name]))
        for name in stored
        if name in present
    }
    differing = [name for name, (there, here) in pairs.items() if not _may_be_same(there, here)]
    if differing:
        return _describe(differing, pairs)
    return _other_codes(list(pairs.values()), SAME_VALUE, 0) or _other_codes(list(pairs.values()), SAME_CODE, FEW_CODES)


def _other_codes(pairs: list[tuple[LayerRecord, LayerRecord]], tolerance: float, few: int) -> str | None:
    """In words, if too many weights of equally quantised layers have other codes.

    Args:
        pairs: Of all layers; those count that were quantised from the same dtype, with `few` those of different ones.
        tolerance: Relative, of one value.
        few: How many more may be others by chance.
    """
    recoded = [pair for pair in pairs if _same_quantization(*pair, same_source=not few)]
    compared = [values for there, here in recoded for values in zip(there.values, here.values, strict=True)]
    changed = sum(not math.isclose(there, here, rel_tol=tolerance) for there, here in compared)
    if changed > OTHER_CODES * len(compared) + few:
        return f"{changed} of {len(compared)} compared weights have other quantised values"
    return None


def _may_be_same(there: LayerRecord, here: LayerRecord) -> bool:
    same_digest = (there.format, there.digest) == (here.format, here.digest)
    if len(there.values) != len(here.values):
        return same_digest
    # The digest is without small weights, which may be all that a layer has.
    if same_digest and _are_alike(there.values, here.values):
        return True
    if there.kind == here.kind and there.kind in (DENSE, GGUF):
        return there.format != here.format and _close(there.values, here.values, _rounding(there), _rounding(here))
    return _close(there.values, here.values, there.reach(), here.reach())


def _are_alike(there: tuple[float, ...], here: tuple[float, ...]) -> bool:
    """Whether weights are equal but for the rounding of small ones, and of the same codes on another device."""
    least = 2 * _least(there, here)
    return all(abs(a - b) <= least + SAME_VALUE * abs(a) for a, b in zip(there, here, strict=True))


def _least(there: tuple[float, ...], here: tuple[float, ...]) -> float:
    """How far apart float16 may have set small weights; of a layer that it would hardly keep at all, less."""
    return min(LEAST_NORMAL * 2**-10, max(map(abs, (*there, *here)), default=0.0) / 16)


def _rounding(record: LayerRecord) -> Iterator[float]:
    return (_half_step(value, record.format) for value in record.values)


def _close(
    there: tuple[float, ...], here: tuple[float, ...], reach: Iterator[float], other_reach: Iterator[float]
) -> bool:
    least, steps = _least(there, here), zip(there, here, reach, other_reach, strict=True)
    return all(abs(a - b) <= TWICE_ROUNDED * (left + right) + least for a, b, left, right in steps)


def _same_quantization(there: LayerRecord, here: LayerRecord, same_source: bool) -> bool:
    if there.kind in (DENSE, GGUF) or there.kind != here.kind:
        return False
    if same_source or there.format == here.format:
        return same_source and there.format == here.format
    return not any(there.kind == name and not stored.keeps_codes for name, stored in QUANTIZATIONS.items())


def _describe(differing: list[str], pairs: Mapping[str, tuple[LayerRecord, LayerRecord]]) -> str:
    def distance(name: str) -> float:
        there, here = (record.values for record in pairs[name])
        size = math.hypot(*there)
        return math.dist(there, here) / size if size and len(there) == len(here) else math.inf

    name = max(differing, key=distance)
    far = distance(name)
    shown = f"{far:.0%}" if far >= 1 else f"{far:.1%}" if far >= 0.001 else "less than 0.1%"
    return (
        f"{len(differing)} of {len(pairs)} compared layers have other weights, e.g. {name!r}, where the weights differ "
        f"by {shown} of their size"
    )
