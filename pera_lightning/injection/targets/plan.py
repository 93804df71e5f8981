"""From a config and a model to the exact list of layers to adapt, before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from pera_lightning.base_layers import base_of, describe_supported, is_linear_like
from pera_lightning.config import ALL_LINEAR, Bias, PeraConfig
from pera_lightning.errors import InjectionError, TargetError
from pera_lightning.injection.copies import exact_copies, mirrored
from pera_lightning.injection.targets.names import adapted_layers, clean_name, has_suffix, near_names, within_any
from pera_lightning.injection.targets.no_match import Matches, matches_no_module, names_no_layer, refuse_match_in_part
from pera_lightning.injection.targets.output_head import output_head
from pera_lightning.injection.targets.token_plan import TokenPlan, plan_tokens
from pera_lightning.injection.targets.unfit_layers import not_plain, refuse_unfit, refuse_wrapped
from pera_lightning.patterns import typed_match


@dataclass(frozen=True)
class LayerPlan:
    """Rank and alpha of one layer; alpha None means alpha = rank."""

    rank: int
    alpha: float | None


@dataclass(frozen=True)
class InjectionPlan:
    """What an injection will do.

    Attributes:
        config: The options behind it.
        layers: Layer name -> rank and alpha.
        saved: Names of the modules that are trained and saved whole, and of the biases that are trained.
        head: Linear layers left alone as the output head.
        unreached: Names of weight matrices outside linear layers, which "all-linear" does not reach.
        tokens: Name of a module -> the rows that are trained of its weight.
        not_plain: Layers that are linear by class and do more than multiply -> what; "all-linear" leaves them alone.
    """

    config: PeraConfig
    layers: dict[str, LayerPlan]
    saved: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    tokens: dict[str, TokenPlan] = field(default_factory=dict)
    not_plain: dict[str, str] = field(default_factory=dict)


def plan_injection(model: nn.Module, config: PeraConfig) -> InjectionPlan:
    """Resolve the patterns of `config` against `model`. Nothing is changed.

    Raises:
        InjectionError: The model holds adapters already.
        TargetError: A pattern matches nothing or something that cannot be adapted, or no layer is left.
    """
    refuse_adapted(model)
    refuse_wrapped(model)
    modules = {clean_name(name): module for name, module in model.named_modules() if clean_name(name)}
    matches = config.full_match
    head: set[str] = set()
    unreached: list[str] = []
    other: dict[str, str] = {}
    if config.target_modules == ALL_LINEAR:
        head = {clean_name(name) for name in output_head(model)}
        targets = _all_linear(modules, head)
        unreached = _unreached(modules)
        other = not_plain(targets, modules)
    else:
        targets = _matching("target_modules", config.target_modules, _candidates(modules, config), modules, matches)
    excluded = _excluded(config.exclude_modules, modules, matches)
    saved = _saved(config.modules_to_save, modules, matches)
    # What is trained of one network moves in its copy too.
    saved += mirrored(saved, exact_copies(model) if saved else {}, modules)
    _refuse_twice(config, targets, saved)
    other = {name: what for name, what in other.items() if not within_any(name, [*excluded, *saved])}
    targets = [name for name in targets if not (name in excluded or name in other or within_any(name, saved))]
    refuse_unfit(targets, modules)
    _refuse_no_target(targets, head, other)
    tokens = plan_tokens(model, modules, config, [*targets, *saved])
    ranks = _by_pattern("rank_pattern", config.rank_pattern, targets, matches)
    alphas = _by_pattern("alpha_pattern", config.alpha_pattern, targets, matches)
    layers = {n: LayerPlan(int(ranks.get(n, config.rank)), alphas.get(n, config.alpha)) for n in targets}
    unreached = [name for name in unreached if not within_any(name, [*excluded, *saved])]
    saved += _biases(modules, config.bias, targets, [*excluded, *saved])
    kept_head = tuple(sorted(head - set(saved)))
    return InjectionPlan(config, layers, tuple(saved), kept_head, tuple(unreached), tokens, other)


def refuse_adapted(model: nn.Module) -> None:
    """Raise InjectionError if the model holds adapters already."""
    found = [name for name, _ in adapted_layers(model)]
    if found:
        raise InjectionError(
            "The model holds adapters already.",
            got=f"{len(found)} adapted layers, the first is {found[0]!r}",
            expected="a model without adapters",
            fix="call remove_adapter(model) first (or merge_adapter(model) to keep what they learned)",
        )


def _linear_only(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {name: module for name, module in modules.items() if is_linear_like(module)}


def _candidates(modules: dict[str, nn.Module], config: PeraConfig) -> dict[str, nn.Module]:
    """What patterns may match; embeddings only by a list, since an expression for whole names easily takes them too."""
    linear = _linear_only(modules)
    if isinstance(config.target_modules, str):
        return linear
    return {name: module for name, module in modules.items() if name in linear or base_of(module) is not None}


def _all_linear(modules: dict[str, nn.Module], head: set[str]) -> list[str]:
    linear = _linear_only(modules)
    if not linear:
        kinds = ", ".join(sorted({type(module).__name__ for module in modules.values()})) or "no submodules"
        raise TargetError(
            "The model has no linear layer to adapt.",
            got=f"a model of {kinds}",
            expected=f"layers of kind {describe_supported()}",
            fix="PERA adapts linear layers, before torch.jit or torch.export freeze them; if the model is "
            "built in setup() or configure_model(), use PeraCallback",
        )
    return [name for name in linear if name not in head]


def _unreached(modules: dict[str, nn.Module]) -> list[str]:
    """Matrices that are no linear layer's: packed projections of attention, stacked experts, recurrent layers, ...

    Embeddings are left out: nobody expects "all-linear" to mean them.
    """
    return [
        f"{name}.{own_name}"
        for name, module in modules.items()
        if not is_linear_like(module) and not isinstance(module, nn.Embedding)
        for own_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    ]


def _matching(
    field: str,
    patterns: str | Sequence[str],
    candidates: dict[str, nn.Module],
    modules: dict[str, nn.Module],
    matches: Matches,
) -> list[str]:
    """Candidates that match; every pattern must match at least one."""
    if isinstance(patterns, str):
        found = [name for name in candidates if matches(patterns, name)]
        if not found:
            other = [name for name in modules if matches(patterns, name)]
            _refuse_container(field, patterns, candidates, modules, other)
            # Those out of files are not for `re`.
            if matches is typed_match:
                refuse_match_in_part(field, patterns, candidates)
            raise matches_no_module(field, patterns, candidates, modules)
        return found
    for pattern in patterns:
        if not any(has_suffix(name, pattern) for name in candidates):
            # A name need not be a regular expression: "*_proj" is none.
            other = [name for name in modules if has_suffix(name, pattern)]
            _refuse_container(field, pattern, candidates, modules, other)
            raise matches_no_module(field, pattern, candidates, modules)
    return [name for name in candidates if any(has_suffix(name, pattern) for pattern in patterns)]


def _refuse_container(
    field: str, pattern: str, candidates: dict[str, nn.Module], modules: dict[str, nn.Module], named: list[str]
) -> None:
    if named:
        inside = [name for name in candidates if name.startswith(named[0] + ".")]
        raise names_no_layer(field, pattern, named[0], type(modules[named[0]]), inside)


def _excluded(patterns: str | Sequence[str], modules: dict[str, nn.Module], matches: Matches) -> set[str]:
    if not patterns:
        return set()
    named = _matching("exclude_modules", patterns, modules, modules, matches)
    return {name for name in modules if within_any(name, named)}


def _saved(patterns: Sequence[str], modules: dict[str, nn.Module], matches: Matches) -> list[str]:
    if not patterns:
        return []
    named = _matching("modules_to_save", patterns, modules, modules, matches)
    for name in named:
        if not list(modules[name].parameters()):
            raise TargetError(
                "modules_to_save names a module without parameters.",
                got=f"{name!r} of kind {type(modules[name]).__name__}",
                expected="a module that can be trained",
                fix="remove it from modules_to_save",
            )
        _refuse_quantized(name, modules[name])
    return [name for name in named if not within_any(name, [other for other in named if other != name])]


def _refuse_twice(config: PeraConfig, targets: list[str], saved: list[str]) -> None:
    """Refuse names that both lists hold; where others meet, being trained whole comes first."""
    for pattern in () if isinstance(config.target_modules, str) else config.target_modules:
        named = [name for name in targets if has_suffix(name, pattern)]
        if all(name in saved for name in named):
            raise TargetError(
                "A layer is to be adapted and to be trained whole.",
                got=f"{pattern!r} of target_modules, which is {named[0]!r}, in modules_to_save too",
                expected="each name in one of them: an adapter has no use in a layer that is trained itself",
                fix=f"leave {pattern!r} out of target_modules to train it whole, or out of modules_to_save to adapt it",
            )


def _biases(modules: dict[str, nn.Module], bias: Bias, targets: list[str], left_out: list[str]) -> list[str]:
    owners = {"none": [], "adapted": targets, "all": list(modules)}[bias]
    found = [name for name in owners if modules[name]._parameters.get("bias") is not None]
    if bias != "none" and not found:
        raise TargetError(
            "There is no bias to train.",
            got=f"bias={bias!r} and a model without biases there",
            expected="layers with a bias",
            fix="use bias='none'",
        )
    return [f"{name}.bias" for name in found if not within_any(name, left_out)]


def _refuse_quantized(name: str, module: nn.Module) -> None:
    bases = [(part, base_of(part)) for part in module.modules()]
    kinds = [kind for part, base in bases if base is not None and (kind := base.quantization(part)) is not None]
    if kinds:
        raise TargetError(
            "modules_to_save names a quantised module, which cannot be trained whole.",
            got=f"{name!r}, quantised as {kinds[0]}",
            expected="a module with floating weights",
            fix="leave it out of the quantisation (llm_int8_skip_modules, skip_modules or ignore_modules), or adapt it",
        )


def _refuse_no_target(targets: list[str], head: set[str], other: dict[str, str]) -> None:
    if not targets:
        more = "".join(f"; {name!r} {what}" for name, what in list(other.items())[:1])
        raise TargetError(
            "No layer is left to adapt.",
            got=f"every linear layer is excluded, saved whole, the output head ({', '.join(sorted(head)) or '-'}) or "
            f"does more than multiply ({', '.join(other) or '-'}{more})",
            expected="at least one layer",
            fix="exclude fewer modules, or name the layers in target_modules",
        )


def _by_pattern(field: str, patterns: object, targets: list[str], matches: Matches) -> dict[str, float]:
    chosen: dict[str, float] = {}
    for pattern, value in dict(patterns or {}).items():  # type: ignore[call-overload]
        found = [name for name in targets if has_suffix(name, pattern) or matches(pattern, name)]
        if not found:
            raise TargetError(
                f"{field} holds a pattern that matches no adapted layer.",
                got=repr(pattern),
                expected="a name suffix or a regular expression that matches an adapted layer",
                fix=f"correct the name; near names: {near_names(pattern, targets)}",
            )
        for name in found:
            chosen.setdefault(name, value)
    return chosen
