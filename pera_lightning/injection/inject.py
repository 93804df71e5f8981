"""`inject_adapter` and `remove_adapter`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import cast

from torch import nn

from pera_lightning.base_layers import base_of, expect_base
from pera_lightning.concurrency import changing, in_turn
from pera_lightning.config import PeraConfig
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from pera_lightning.form_bounds import check_columns
from pera_lightning.injection.copies import (
    exact_copies,
    followers,
    forget_copies,
    frozen_copies,
    note_copies,
    note_identity,
)
from pera_lightning.injection.injection_report import InjectionReport, report_of
from pera_lightning.injection.quantization.loftq import init_loftq
from pera_lightning.injection.replacement import replace_modules
from pera_lightning.injection.saved_modules import (
    forget_saved,
    mark_saved,
    marked_modules,
    memory_of_saved,
    saved_parameters,
    swap_saved,
)
from pera_lightning.injection.targets.names import adapter_layers, clean_name, fitting_place, is_adapted, near_names
from pera_lightning.injection.targets.plan import InjectionPlan, plan_injection, refuse_adapted
from pera_lightning.injection.targets.token_plan import check_plan, token_row_layers
from pera_lightning.injection.targets.unfit_layers import refuse_unfit, refuse_wrapped
from pera_lightning.injection.untrained import note_start
from pera_lightning.layers import PeraLinear, TokenRowsLayer, adapted_layer
from pera_lightning.layers.call_hooks import lift_hooks, lower_hooks

# A plain attribute on the model that was injected into: which parameters had requires_grad before.
_TRAINABLE_BEFORE = "_pera_trainable_before"
OWN_MODEL = "load the adapter into its own model"
"""The cure where a model lacks what an adapter adapts."""


def inject_adapter(model: nn.Module, config: PeraConfig, *, float_model: nn.Module | None = None) -> InjectionReport:
    """Put PERA adapters into a model, in place, and freeze everything else. All or nothing.

    The model's outputs do not change: the adapters start at zero (with `init="loftq"` they change towards those of the
    floating model). A module that is used twice gets one adapter.

    Args:
        model: Any module with linear layers, dense or quantised by bitsandbytes.
        config: The adapter's options.
        float_model: With `init="loftq"`: a module that holds the floating weights under the same names.

    Returns:
        Names and numbers of what was adapted.

    Raises:
        ConfigError: `init="loftq"` without a quantised base or without its floating weights.
        InjectionError: The model holds adapters already.
        TargetError: A pattern matches nothing or something that cannot be adapted, or no layer is left.
    """
    plan = plan_injection(model, config)
    if config.init == "loftq" and float_model is None:
        raise ConfigError(
            "A LoftQ start needs the floating weights of the base.",
            got="init='loftq' without float_model",
            expected="the model before quantisation",
            fix="inject_adapter(model, config, float_model=...); with PeraCallback give your LightningModule a method "
            "float_model() that returns it (PeraCausalLM has one)",
        )
    with changing(model):
        report = inject_plan(model, plan)
        if config.init == "loftq":
            try:
                init_loftq(model, cast("nn.Module", float_model), steps=config.loftq_steps)
            except BaseException:
                remove_adapter(model)
                raise
    return report


@in_turn
def inject_plan(model: nn.Module, plan: InjectionPlan) -> InjectionReport:
    """Carry out a plan; `inject_adapter` makes one from patterns, `load_adapter` from a file.

    Raises:
        ConfigError: A layer would get more expanded columns than it can make use of.
        InjectionError: The model holds adapters already.
        TargetError: A layer of the plan is not in the model or of no supported kind.
    """
    refuse_adapted(model)
    refuse_wrapped(model)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    for name in (*plan.layers, *plan.tokens, *plan.saved):
        if name not in modules and not (name in plan.saved and _owns(modules, name)):
            raise no_such_module(name, modules, (*plan.layers, *plan.tokens))
    refuse_unfit(plan.layers, modules)
    for name, tokens in plan.tokens.items():
        check_plan(name, tokens, modules)
    _check_columns(plan, modules)
    # Every new module is built before the first one is put in place: running out of memory here leaves the
    # model as it was.
    adapters: dict[int, PeraLinear | TokenRowsLayer] = {
        id(modules[name]): adapted_layer(modules[name], plan.config, rank=layer.rank, alpha=layer.alpha)
        for name, layer in plan.layers.items()
    }
    adapters.update(token_row_layers(plan.tokens, modules))
    # Also those without an adapter: gradients pass through them.
    for module in modules.values():
        base = base_of(module)
        if base is not None:
            base.prepare(module)
    copies = exact_copies(model)
    frozen = frozen_copies(model, copies)
    put_in(model, adapters)
    freeze_base(model)
    for name in plan.saved:
        _mark(name, modules)
    note_copies(model, copies, frozen)
    note_start(model)
    return report_of(model, plan)


def _check_columns(plan: InjectionPlan, modules: Mapping[str, nn.Module]) -> None:
    for name, layer in plan.layers.items():
        features = expect_base(modules[name]).features(modules[name])
        check_columns(repr(name), layer.rank, plan.config.order, plan.config.terms, features)


def no_such_module(name: str, modules: Mapping[str, nn.Module], every: Collection[str]) -> TargetError:
    """The error for a layer or module of an adapter that the model does not have.

    Args:
        name: Of the module.
        modules: Those of the model.
        every: Names of all that the adapter adapts.
    """
    place = fitting_place(every, modules)
    return TargetError(
        "The model has no module of this name.",
        got=f"{name!r}" if place else f"{name!r}; near names in this model: {near_names(name, modules)}",
        expected="the names of the model that the adapter was made for",
        fix=place or OWN_MODEL,
    )


def _owns(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether `name` is a parameter of its own of one of the modules."""
    owner, _, own_name = name.rpartition(".")
    return owner in modules and modules[owner]._parameters.get(own_name) is not None


def _mark(name: str, modules: Mapping[str, nn.Module]) -> None:
    if name in modules:
        mark_saved(modules[name])
    else:
        owner, _, own_name = name.rpartition(".")
        mark_saved(modules[owner], own_name)


def freeze_base(model: nn.Module) -> None:
    """Make the adapters and what is saved beside them trainable, and nothing else."""
    model.requires_grad_(False)
    for parameter in adapter_parameters(model):
        parameter.requires_grad_(True)
    for _, module in followers(model):
        module.requires_grad_(False)


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that belong to the adapter: factors, coefficients, token rows, modules saved whole, biases."""
    for _, layer in adapter_layers(model):
        yield from layer.adapter().values()
    for _, module in marked_modules(model):
        yield from saved_parameters(module)


@in_turn
def remove_adapter(model: nn.Module) -> nn.Module:
    """Take the adapters out again: the original modules, values and `requires_grad` flags come back.

    Args:
        model: The module that `inject_adapter` or `load_adapter` was called with (on a part of it the
            parameters stay frozen).

    Returns:
        The same model.

    Raises:
        InjectionError: The model holds no adapter.
    """
    if not is_adapted(model):
        raise InjectionError(
            "There is no adapter to remove.",
            got="a model without adapters",
            expected="a model with adapters",
            fix="leave the call out",
        )
    # From the last to the first, so that tied weights come back too.
    for _, layer in reversed(list(adapter_layers(model))):
        if layer.merged:
            layer.unmerge()
    memory = memory_of_saved(model)
    for _, module in marked_modules(model):
        swap_saved(module, memory)
    take_out(model)
    return model


def put_in(model: nn.Module, layers: Mapping[int, PeraLinear | TokenRowsLayer]) -> None:
    """Put adapted layers in the place of their bases, given by id, and note which parameters were trainable."""
    trainable_before = trainable_names(model)
    replace_modules(model, layers)
    for layer in layers.values():
        lift_hooks(layer, layer.base_layer)
        note_identity(layer)
    setattr(model, _TRAINABLE_BEFORE, trainable_before)


def trainable_names(model: nn.Module) -> list[str]:
    """Clean names of the parameters that require gradients."""
    return [clean_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]


def set_trainable(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters of these clean names require gradients, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(clean_name(name) in names)


def take_out(model: nn.Module) -> None:
    """Put the base layers back in the place of the adapted ones, whatever their weights hold now."""
    forget_copies(model)
    for _, module in list(marked_modules(model)):
        forget_saved(module)
    layers = [part for part in model.modules() if isinstance(part, PeraLinear | TokenRowsLayer)]
    for layer in layers:
        lower_hooks(layer, layer.base_layer)
    replace_modules(model, {id(layer): layer.base_layer for layer in layers})
    if not hasattr(model, _TRAINABLE_BEFORE):
        return
    trainable_before = set(getattr(model, _TRAINABLE_BEFORE))
    delattr(model, _TRAINABLE_BEFORE)
    set_trainable(model, trainable_before)
