"""Whether an adapter out of files fits a model: sizes before anything is built, values before they are copied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of
from pera_lightning.checkpoint.adapter_mismatch import describe_mismatch, shapes
from pera_lightning.checkpoint.adapter_state import adapter_state_dict
from pera_lightning.checkpoint.adapter_tensors import dtype_difference
from pera_lightning.checkpoint.computable import LayerForm, constant_infinities, forms_in, value_problem
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection import clean_name


def check_sizes(manifest: Manifest, tensors: Mapping[str, Tensor], model: nn.Module, where: object) -> None:
    """Raise AdapterFileError if an adapter's factors are of other sizes than the layers of a model without adapters.

    Layers that the model does not have, or of another kind, are left to the injection.

    Args:
        manifest: What the adapter adapts.
        tensors: What `check_tensors` gave.
        model: The model.
        where: Where the adapter is from, for the message.
    """
    modules = {clean_name(name): module for name, module in model.named_modules()}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, plan in manifest.layers.items():
        base = base_of(modules[name]) if name in modules else None
        if base is not None:
            features, outputs = base.features(modules[name])
            wanted |= {f"{name}.pera_A": (plan.rank, features), f"{name}.pera_B": (outputs, plan.rank)}
    _refuse_other_shapes({key: tuple(tensors[key].shape) for key in wanted}, wanted, where)


def check_fit(tensors: Mapping[str, Tensor], model: nn.Module, where: object) -> None:
    """Raise AdapterFileError unless a model with adapters can take these tensors for its own, and compute with them.

    Args:
        tensors: As `adapter_state_dict` names them.
        model: The model.
        where: Where they are from, for the message.
    """
    present = adapter_state_dict(model)
    _refuse_other_shapes(shapes(dict(tensors)), shapes(present), where)
    difference = dtype_difference(tensors, present)
    if difference:
        raise AdapterFileError(
            "The adapter holds a tensor of a dtype that the model cannot take.",
            got=f"{where}: {difference}",
            expected="float32, float16 or bfloat16, or the model's own dtype",
            fix="save the adapter again, or convert the tensor",
        )
    constants = constant_infinities(tensors, model, present)
    _refuse_values(tensors, forms_in(model), present, constants, where)


def check_alone(manifest: Manifest, tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise AdapterFileError unless some model could compute with an adapter's factors, in float32.

    Args:
        manifest: What the adapter adapts.
        tensors: What `check_tensors` gave.
        where: Where the adapter is from, for the message.
    """
    config = manifest.config
    forms = {
        name: LayerForm(config, config.scaling(plan.rank, plan.alpha), torch.float32)
        for name, plan in manifest.layers.items()
    }
    # What is saved whole may be infinite where the model's own is.
    factors = {key: value for key, value in tensors.items() if key.rpartition(".")[0] in forms}
    _refuse_values(factors, forms, factors, set(), where)


def _refuse_values(
    tensors: Mapping[str, Tensor],
    forms: Mapping[str, LayerForm],
    present: Mapping[str, Tensor],
    constants: set[str],
    where: object,
) -> None:
    infinite = not_finite({key: value for key, value in tensors.items() if key not in constants})
    if infinite:
        raise AdapterFileError(
            "The adapter holds values that are not finite.",
            got=f"{where}: {describe_infinite(infinite)}",
            expected="finite values",
            fix="use the adapter of an earlier checkpoint; that training diverged",
        )
    problem = value_problem(tensors, forms, present, constants)
    if problem:
        raise AdapterFileError(
            "The adapter holds values that the model cannot compute with.",
            got=f"{where}: {problem}",
            expected="values that stay finite in the model's dtypes",
            fix="use the adapter of an earlier checkpoint; that training diverged, or the files are damaged",
        )


def _refuse_other_shapes(given: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], where: object) -> None:
    mismatch = describe_mismatch(given, wanted)
    if mismatch:
        raise AdapterFileError(
            "The adapter does not fit this model.",
            got=f"{where}: {mismatch}",
            expected="the same layers, ranks and sizes as the model's",
            fix="load it into the base model it was trained on",
        )
