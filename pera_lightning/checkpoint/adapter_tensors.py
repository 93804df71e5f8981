"""Whether the tensors of an adapter are those that its config lists, by names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError, shown
from pera_lightning.form_bounds import MAX_NAME, column_count, most_columns
from pera_lightning.injection import LayerPlan
from pera_lightning.injection.targets.names import BELOW, parents

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What adapters are stored in; that of a model in float64 in float64."""
_FACTORS = (*FLOATS, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Buffers of modules saved whole: counts, masks, positions."""
STORED = (*_FACTORS, *_WHOLE)
"""What any tensor beside a model may be."""
ROWS = "token_rows.delta"


def check_tensors(manifest: Manifest, tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Compare an adapter's tensors with its config. Their values are not read.

    Args:
        manifest: The config.
        tensors: As `adapter_state_dict` names them.
        where: Where both are from, for the message.

    Returns:
        The tensors by the names that their layers have in a model without adapters.

    Raises:
        AdapterFileError: They are not exactly those that the config lists.
    """
    wrapped = {*manifest.layers, *(name for row, rows in manifest.tokens.items() for name in (row, *rows.tied))}
    found = {_original(key, wrapped): value for key, value in tensors.items()}
    problem = next(_problems(manifest, found), None) or _repeated(found, tensors)
    if problem is not None:
        raise AdapterFileError(
            "The adapter's files do not belong together.",
            got=f"{where}: {problem}",
            expected="the tensors that the adapter's config lists, of its ranks and order, in floating dtypes",
            fix="copy both files of one save, or save the adapter again",
        )
    return found


def _problems(manifest: Manifest, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    used: set[str] = set()
    for name, plan in manifest.layers.items():
        keys = [f"{name}.{own}" for own in ("pera_A", "pera_B", "pera_h")]
        used.update(keys)
        yield from _of_layer(name, plan, manifest.config, *(tensors.get(key) for key in keys))
    for name, rows in manifest.tokens.items():
        used.add(f"{name}.{ROWS}")
        yield from _of_rows(name, len(rows.ids), tensors.get(f"{name}.{ROWS}"))
    rest = {key: value for key, value in tensors.items() if key not in used}
    yield from _of_others(set(manifest.saved), rest)


def _of_layer(
    name: str, plan: LayerPlan, config: PeraConfig, A: Tensor | None, B: Tensor | None, h: Tensor | None
) -> Iterator[str]:
    if A is None or B is None:
        lost = f"{name}.pera_{'B' if B is None else 'A'}"
        yield f"no {lost!r}"
        return
    if A.dim() != 2 or B.dim() != 2 or not A.shape[0] == B.shape[1] == plan.rank or not A.numel() * B.numel():
        yield f"factors of shapes {tuple(A.shape)} and {tuple(B.shape)} for layer {name!r} of rank {plan.rank:,}"
        return
    columns, most = column_count(plan.rank, config.order, config.terms), most_columns(A.shape[1], B.shape[0])
    if columns > most:
        yield (
            f"layer {name!r} from {A.shape[1]:,} to {B.shape[0]:,} features with K = {columns:,} expanded columns (of "
            f"rank {plan.rank:,}, order {config.order} and terms {config.terms!r}), where at most {most:,} make sense"
        )
    wanted, given = (columns - plan.rank,), None if h is None else tuple(h.shape)
    if given != wanted and not (given is None and wanted == (0,)):
        yield f"coefficients of shape {given} for layer {name!r}, whose rank, order and terms take {wanted}"
    for own, value in (("pera_A", A), ("pera_B", B), ("pera_h", h)):
        if value is not None and value.dtype not in _FACTORS:
            yield f"{own} of layer {name!r} of dtype {dtype_name(value)}"


def _of_rows(name: str, count: int, delta: Tensor | None) -> Iterator[str]:
    key = f"{name}.{ROWS}"
    if delta is None:
        yield f"no {key!r}"
    elif delta.dim() != 2 or delta.shape[0] != count:
        yield f"{key!r} of shape {tuple(delta.shape)} for {count:,} tokens"
    elif delta.dtype not in _FACTORS:
        yield f"{key!r} of dtype {dtype_name(delta)}"


def _of_others(saved: set[str], others: Mapping[str, Tensor]) -> Iterator[str]:
    """Every other tensor belongs to what is saved whole, and of each of these there is something."""
    found: set[str] = set()
    for key, value in others.items():
        owner = None if len(key) > MAX_NAME else _owner(key, saved)
        if owner is None:
            yield f"{shown(key)}, which the config does not list"
            return
        found.add(owner)
        if value.dtype not in STORED:
            yield f"{key!r} of dtype {dtype_name(value)}"
    for name in saved - found:
        yield f"no tensor of {name!r}, which is saved whole"


def _owner(key: str, saved: set[str]) -> str | None:
    """What is saved whole and holds a tensor, or is it; None if nothing does."""
    return next((above for above in (*parents(key), key) if above in saved), None)


def _original(key: str, wrapped: set[str]) -> str:
    """The name of a tensor without what adapters around it add; a user's own module may be called the same."""
    if f".{BELOW}." not in key or len(key) > MAX_NAME:
        return key
    found, inside = "", False
    for part in key.split("."):
        if part == BELOW and inside:
            inside = False
            continue
        found = f"{found}.{part}" if found else part
        inside = found in wrapped
    return found


def _repeated(found: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    return None if len(found) == len(tensors) else "two tensors of one name, beside and below an adapter"


def dtype_name(value: Tensor) -> str:
    """Of a tensor, as torch calls it."""
    return str(value.dtype).removeprefix("torch.")


def dtype_difference(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """In words, which tensor cannot be taken for a model's own of the same name; None if all can.

    A floating one may be in float32, float16 or bfloat16 whatever the model's is; everything else has to be of its
    dtype.
    """
    for key, value in tensors.items():
        own = wanted[key].dtype
        narrow = own.is_floating_point and own.itemsize > 1 and value.dtype in FLOATS
        if value.dtype != own and not narrow:
            return f"{key!r} of dtype {dtype_name(value)}, here {dtype_name(wanted[key])}"
    return None
