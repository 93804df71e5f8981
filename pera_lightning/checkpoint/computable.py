"""Whether a model can compute with the values of an adapter: finite in its dtypes, and of a size that stays so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import expect_base
from pera_lightning.checkpoint.finite_values import largest_values
from pera_lightning.config import PeraConfig
from pera_lightning.functional.expansion.coefficient_scale import degree_factors, scaled_coefficients
from pera_lightning.functional.weight import expanded_factors
from pera_lightning.injection import adapted_layers
from pera_lightning.injection.saved_modules import kept_infinities

MOST_GAIN = 1e9
"""How many times larger than its input what an adapter adds to a layer's output may be."""
MOST_VALUE = 1e12
"""Of what is saved whole, unless the model's own values are larger."""
_MOST_PARTIAL = 1e30
"""Of partial products in float32 and bfloat16, which end at 3e38."""
_EXACT = 1 << 24
"""Entries of expanded factors that are looked at for any layer."""


class LayerForm(NamedTuple):
    """What a layer's adapter computes apart from its tensors."""

    config: PeraConfig
    scaling: float
    dtype: torch.dtype
    """What it computes in."""


def forms_in(model: nn.Module) -> dict[str, LayerForm]:
    """The adapted layers of a model by name."""
    return {
        name: LayerForm(layer.config, layer.scaling, expect_base(layer.base_layer).dtype(layer.base_layer))
        for name, layer in adapted_layers(model)
    }


def value_problem(
    tensors: Mapping[str, Tensor], forms: Mapping[str, LayerForm], present: Mapping[str, Tensor], constants: set[str]
) -> str | None:
    """In words, which values of an adapter a model could not compute with; None if there are none.

    Args:
        tensors: Those that are to be loaded, with the names and shapes of the model's.
        forms: Of the adapted layers.
        present: The model's own tensors, whose dtypes count.
        constants: Those that may be infinite, see `constant_infinities`.
    """
    sizes = {key: size for key, size in largest_values(tensors).items() if key not in constants}
    return next(_problems(tensors, sizes, forms, present), None)


def constant_infinities(tensors: Mapping[str, Tensor], model: nn.Module, present: Mapping[str, Tensor]) -> set[str]:
    """Buffers, such as masks, that are infinite where the model's own are."""
    kept = kept_infinities(model)
    return {key for key in kept if torch.equal(tensors[key].isfinite().cpu(), present[key].isfinite().cpu())}


def _problems(
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, float],
    forms: Mapping[str, LayerForm],
    present: Mapping[str, Tensor],
) -> Iterator[str]:
    for key, size in sizes.items():
        own = present[key]
        if own.is_floating_point() and not math.isfinite(torch.tensor(size, dtype=torch.float64).to(own.dtype).item()):
            yield f"{key!r} holds {size:g}, which {_named(own.dtype)} cannot"
    for name, form in forms.items():
        A, B, h = tensors[f"{name}.pera_A"], tensors[f"{name}.pera_B"], tensors.get(f"{name}.pera_h")
        a, b, c = (sizes.get(f"{name}.{own}", 0.0) for own in ("pera_A", "pera_B", "pera_h"))
        if not _surely_small(A.shape, a, b, c, form) and not _is_small(A, B, h, form):
            yield f"the adapter of layer {name!r} could make an input larger by more than {_most(form)[0]:g}"
    for key in sizes.keys() - {f"{name}.{own}" for name in forms for own in ("pera_A", "pera_B", "pera_h")}:
        if sizes[key] > MOST_VALUE and sizes[key] > largest_values({key: present[key]}).get(key, 0.0):
            yield f"{key!r} holds {sizes[key]:g}, beyond {MOST_VALUE:g} and what the model itself has"
        if key.endswith("running_var") and tensors[key].numel() and tensors[key].min() < 0:
            yield f"{key!r} holds a variance below 0"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _most(form: LayerForm) -> tuple[float, float]:
    """The largest gain, and the largest partial product."""
    end = torch.finfo(form.dtype).max
    return min(MOST_GAIN, end), min(_MOST_PARTIAL, end)


def _surely_small(shape: torch.Size, a: float, b: float, c: float, form: LayerForm) -> bool:
    """Whether the adapter is small even if all entries are as large as the largest one and add up.

    With p = rank * a * b no entry of dW is beyond `scaling * (p + sum_d c_d p^d)`, and no row adds up to more than
    `in` times that.
    """
    rank, features = shape
    order, partial = form.config.order, 1.0
    factors = (1.0, *(c * factor for factor in degree_factors(form.config.coefficient_scale, order, features)))
    gain = 0.0
    for degree, factor in enumerate(factors, start=1):
        gain += factor * _power(rank * a * b, degree)
        left = form.scaling * factor * max(_power(b, degree), 1.0)
        partial = max(partial, left, features * _power(a, degree))
    most_gain, most_partial = _most(form)
    return features * form.scaling * gain <= most_gain and partial <= most_partial


def _power(value: float, degree: int) -> float:
    # `**` raises where this is infinite.
    return math.prod([value] * degree)


def _is_small(A: Tensor, B: Tensor, h: Tensor | None, form: LayerForm) -> bool:
    """The same, from the weight change itself, in float64 and by blocks of rows."""
    (rank, features), outputs, config = A.shape, B.shape[0], form.config
    columns = rank + (0 if h is None else h.numel())
    if columns * (features + outputs) > max(_EXACT, 2 * features * outputs):
        return False
    A, B = A.double(), B.double()
    if h is not None:
        h = scaled_coefficients(h.double(), config.coefficient_scale, rank, config.order, config.terms, features)
    left, right = expanded_factors(A, B, h, order=config.order, terms=config.terms)
    left = left * form.scaling
    most_gain, most_partial = _most(form)
    if not (left.abs().amax() <= most_partial and right.abs().sum(1).amax() <= most_partial):
        return False
    rows = max(1, _EXACT // features)
    return all((block @ right).abs().sum(1).amax() <= most_gain for block in left.split(rows))
