"""`inject_lora`: a PERA adapter that starts where a LoRA of PEFT ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of, describe_supported, expect_base
from pera_lightning.checkpoint.adapter_mismatch import describe_mismatch, shapes
from pera_lightning.checkpoint.adapter_state import adapter_state_dict, copy_into
from pera_lightning.checkpoint.adapter_tensors import dtype_difference
from pera_lightning.checkpoint.computable import LayerForm, value_problem
from pera_lightning.checkpoint.lora.peft_lora import LayerFactors, PeftLora, read_peft_lora
from pera_lightning.concurrency import changing
from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError, InjectionError
from pera_lightning.families import Terms
from pera_lightning.functional.distributed import whole
from pera_lightning.functional.precision import factor_dtype
from pera_lightning.injection import InjectionPlan, InjectionReport, clean_name, inject_plan, remove_adapter
from pera_lightning.injection.targets.names import near_names, within_any
from pera_lightning.injection.targets.plan import refuse_adapted


def inject_lora(
    model: nn.Module,
    directory: str | Path,
    order: int = 2,
    *,
    terms: Terms = "full",
    dropout: float = 0.0,
    coefficient_scale: float | Literal["auto"] = 1.0,
) -> InjectionReport:
    """Put PERA adapters into a model that start as a LoRA: A and B are taken over, h is 0. All or nothing.

    The model computes what it does with the LoRA, and training goes on with the higher terms. Layers, ranks and alphas
    are the LoRA's, and so are the modules that it holds whole. What `save_adapter` writes afterwards is an adapter of
    its own: loading it takes no LoRA.

    Args:
        model: The model that the LoRA was trained on, without adapters; its base may be quantised otherwise.
        directory: Folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT or `export_lora` wrote it.
        order: Highest degree of the monomials: 2 adds the square and cross terms, 1 goes on with the LoRA as it is.
        terms: Which monomials take part, see `PeraConfig`.
        dropout: For the training to come; the LoRA's is not taken over.
        coefficient_scale: See `PeraConfig`.

    Returns:
        Names and numbers of what was adapted.

    Raises:
        AdapterFileError: A file is missing or damaged, it is no plain LoRA, or it does not fit the model.
        ConfigError: An option is out of range.
        InjectionError: The model holds adapters already, or has no memory (meta device).
    """
    lora = read_peft_lora(directory)
    form = {"order": order, "terms": terms, "dropout": dropout, "coefficient_scale": coefficient_scale}
    plan = plan_lora(lora, model, dataclasses.replace(lora.config, **form))  # type: ignore[arg-type]
    with changing(model):
        report = inject_plan(model, plan)
        try:
            copy_lora(lora, model)
        except BaseException:
            remove_adapter(model)
            raise
    return report


def plan_lora(lora: PeftLora, model: nn.Module, config: PeraConfig) -> InjectionPlan:
    """The injection for a LoRA, if it fits a model. Nothing is changed.

    Args:
        lora: The LoRA.
        model: The model that it was trained on.
        config: `lora.config` with other options of training.

    Raises:
        AdapterFileError: It does not fit.
        InjectionError: The model holds adapters already.
    """
    refuse_adapted(model)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    tensors = {clean_name(name): value for name, value in model.state_dict(keep_vars=True).items()}
    for name, factors in lora.factors.items():
        _check_layer(lora, name, factors, modules)
    _check_saved(lora, modules)
    _check_base(lora, tensors)
    _check_ties(lora, tensors)
    _check_dtypes(lora, modules, tensors)
    _check_finite(lora)
    _check_values(lora, config, modules, tensors)
    return InjectionPlan(config, lora.layers, tuple(config.modules_to_save))


@torch.no_grad()
def copy_lora(lora: PeftLora, model: nn.Module) -> None:
    """Give the adapters that `plan_lora` planned the values of the LoRA, and h zeros. Sharded ones keep their parts.

    Raises:
        InjectionError: The adapters have no memory yet.
    """
    wanted = adapter_state_dict(model)
    without_memory = [name for name, value in wanted.items() if value.is_meta]
    if without_memory:
        raise InjectionError(
            "The LoRA has nowhere to go: the adapters have no memory.",
            got=f"{without_memory[0]!r} on the meta device",
            expected="a model on a real device; under ModelParallelStrategy after shard_model()",
            fix="load the model before; in shard_model() give the adapters memory with "
            "pera_lightning.injection.sharding.start_on(self, device)",
        )
    values = dict(lora.saved)
    for name, factors in lora.factors.items():
        values[f"{name}.pera_A"], values[f"{name}.pera_B"] = factors
    zeros = {name: torch.zeros(value.shape) for name, value in wanted.items() if name.endswith(".pera_h")}
    copy_into(model, zeros | values)


def _check_layer(lora: PeftLora, name: str, factors: LayerFactors, modules: Mapping[str, nn.Module]) -> None:
    if name not in modules:
        raise AdapterFileError(
            "The LoRA adapts a layer that the model does not have.",
            got=f"{lora.folder}: {name!r}",
            expected="the model that it was trained on, with the same names",
            fix=f"give the module that PEFT had (of a LightningModule: inject_lora(module.model, ...), or name it by "
            f"an attribute adapter_root); near names in this one: {near_names(name, modules)}",
        )
    base = base_of(modules[name])
    if base is None or base.linear == (name in lora.embeddings):
        raise AdapterFileError(
            "The LoRA adapts a layer that cannot be adapted in this way.",
            got=f"{lora.folder}: {name!r} of kind {type(modules[name]).__name__}",
            expected=f"layers of kind {describe_supported()}",
            fix="merge the LoRA into the base with PEFT (merge_and_unload) and train a new adapter on that",
        )
    wanted, given = base.features(modules[name]), (factors.A.shape[1], factors.B.shape[0])
    if given != wanted:
        raise _other_shapes(lora, f"{name!r} from {given[0]} to {given[1]} features, here {wanted[0]} to {wanted[1]}")


def _check_saved(lora: PeftLora, modules: Mapping[str, nn.Module]) -> None:
    for name in lora.config.modules_to_save:
        if name not in modules:
            raise AdapterFileError(
                "The LoRA holds a module that the model does not have.",
                got=f"{lora.folder}: {name!r}, which it was trained with as a whole",
                expected="a model with that module",
                fix=f"load the model with the head that the LoRA was trained with; near names: "
                f"{near_names(name, modules)}",
            )
        wanted = {f"{name}.{key}": tuple(value.shape) for key, value in modules[name].state_dict().items()}
        given = {key: shape for key, shape in shapes(lora.saved).items() if within_any(key, [name])}
        mismatch = describe_mismatch(given, wanted)
        if mismatch:
            raise _other_shapes(lora, mismatch)


def _other_shapes(lora: PeftLora, got: str) -> AdapterFileError:
    return AdapterFileError(
        "The LoRA was made for a model of other sizes.",
        got=f"{lora.folder}: {got}",
        expected="the sizes of the model",
        fix="load the model that the LoRA was trained on, with the same vocabulary and labels",
    )


def _check_base(lora: PeftLora, tensors: Mapping[str, Tensor]) -> None:
    """What came along of the base must be what the model has, or will have by a tie to what is saved whole."""
    for name, value in lora.base.items():
        own_name = name.replace(".base_layer.", ".")
        saved = (lora.saved[other] for other in _tied(own_name, tensors) if other in lora.saved)
        if not _equal(next(saved, tensors.get(own_name)), value):
            raise AdapterFileError(
                "The LoRA changes the base beside its factors.",
                got=f"{lora.folder}: {name!r}, which is not what the model has",
                expected="factors, and modules that modules_to_save names",
                fix="merge it into the base with PEFT (merge_and_unload) and train a new adapter on that: biases "
                "(bias='all') and resized embeddings cannot be taken over",
            )


def _equal(own: Tensor | None, stored: Tensor) -> bool:
    if own is None or own.shape != stored.shape:
        return False
    # Without memory there are no values yet: FSDP2 fills the model later.
    return own.is_meta or torch.equal(whole(own.detach()).to(stored.device, stored.dtype), stored)


def _check_ties(lora: PeftLora, tensors: Mapping[str, Tensor]) -> None:
    """PEFT trains copies of tied tensors; here they stay one."""
    for name in lora.saved:
        for other in _tied(name, tensors):
            same = lora.keeps_ties if other not in lora.saved else torch.equal(lora.saved[name], lora.saved[other])
            if not same:
                raise _untied(lora, name, other)
    if lora.keeps_ties:
        for layer in lora.layers:
            for other in _tied(f"{layer}.weight", tensors):
                raise _untied(lora, f"{layer}.weight", other)


def _tied(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    own = tensors.get(name)
    return [other for other, value in tensors.items() if value is own and other != name]


def _untied(lora: PeftLora, name: str, other: str) -> AdapterFileError:
    return AdapterFileError(
        "The LoRA treats tied weights otherwise than this model would.",
        got=f"{lora.folder}: {name!r}, which is tied to {other!r} here",
        expected="tensors that are tied in both, or adapters of each for itself",
        fix="load the model with tie_word_embeddings=False; or merge the LoRA into the base with PEFT "
        "(merge_and_unload) and train a new adapter on that",
    )


def _as_adapter(lora: PeftLora) -> dict[str, Tensor]:
    parts = {name: {"pera_A": factors.A, "pera_B": factors.B} for name, factors in lora.factors.items()}
    return lora.saved | {f"{name}.{own}": value for name, pair in parts.items() for own, value in pair.items()}


def _own_tensors(lora: PeftLora, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the tensors of the LoRA are going to be copied into, or empty ones of the same dtype."""
    own = {key: tensors[key] for key in lora.saved}
    for name in lora.factors:
        factor = torch.empty(0, dtype=factor_dtype(expect_base(modules[name]).dtype(modules[name])))
        own |= {f"{name}.pera_A": factor, f"{name}.pera_B": factor}
    return own


def _check_dtypes(lora: PeftLora, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    difference = dtype_difference(_as_adapter(lora), _own_tensors(lora, modules, tensors))
    if difference:
        raise AdapterFileError(
            "The LoRA holds a tensor of a dtype that the model cannot take.",
            got=f"{lora.folder}: {difference}",
            expected="float32, float16 or bfloat16, or the model's own dtype",
            fix="convert the tensor",
        )


def _check_values(
    lora: PeftLora, config: PeraConfig, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> None:
    # Its terms of higher order start at zero.
    plain = dataclasses.replace(lora.config, order=1)
    forms = {
        name: LayerForm(plain, config.scaling(layer.rank, layer.alpha), expect_base(modules[name]).dtype(modules[name]))
        for name, layer in lora.layers.items()
    }
    problem = value_problem(_as_adapter(lora), forms, _own_tensors(lora, modules, tensors), set())
    if problem:
        raise AdapterFileError(
            "The LoRA holds values that the model cannot compute with.",
            got=f"{lora.folder}: {problem}",
            expected="values that stay finite in the model's dtypes",
            fix="use the LoRA of an earlier checkpoint; that training diverged, or the files are damaged",
        )


def _check_finite(lora: PeftLora) -> None:
    parts = [*lora.saved.items(), *((name, part) for name, factors in lora.factors.items() for part in factors)]
    broken = [name for name, value in parts if not torch.isfinite(value).all()]
    if broken:
        raise AdapterFileError(
            "The LoRA holds values that are not finite.",
            got=f"{lora.folder}: {broken[0]!r} has NaN or infinity",
            expected="finite values",
            fix="use the LoRA of an earlier checkpoint; that training diverged",
        )
