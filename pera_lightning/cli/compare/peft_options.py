"""A configuration of PEFT as a method of a comparison: the fit's own rank, layers and dropout, and its options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pera_lightning.cli.compare.comparison_methods import PEFT
from pera_lightning.config import PeraConfig
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError, one_line
from pera_lightning.requirements import describe, require

if TYPE_CHECKING:
    from peft import PeftConfig

_AROUND, _SHARED = "a model of its own around the base", "tensors that layers share, which it keeps outside of the base"
NEEDS_MORE = {
    "ADALORA": "a call of its update_and_allocate after every step",
    "LN_TUNING": "norms in place of linear layers",
    "POLY": "task ids with every batch",
    "TRAINABLE_TOKENS": "tokens in place of layers",
    "XLORA": "trained adapters to mix",
    **dict.fromkeys(("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"), _AROUND),
    **dict.fromkeys(("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHADOW"), _AROUND),
    **dict.fromkeys(("FROD", "PVERA", "TINYLORA", "UNILORA", "VBLORA", "VERA"), _SHARED),
}
"""What types of PEFT take besides being put into a model, which `fit` does not give them."""
STARTS_NEED_MORE = ("corda", "eva", "lora_ga", "loftq")
"""Starts of LoRA that are computed from data or from a floating base by calls of their own."""
OF_THE_FIT = {
    "target_modules": "--pera.target_modules",
    "exclude_modules": "--pera.exclude_modules",
    "layers_to_transform": "--pera.exclude_modules",
    "layers_pattern": "--pera.exclude_modules",
    "target_parameters": "--pera.target_modules",
    "modules_to_save": "--pera.modules_to_save",
    **dict.fromkeys(("inference_mode", "task_type", "bias", "trainable_token_indices", "layer_replication")),
    **dict.fromkeys(("alora_invocation_tokens", "rank_pattern", "alpha_pattern", "fan_in_fan_out")),
}
"""Fields that say which parts are trained, which are the same for all methods, and the options that they follow."""


def peft_options(given: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a method's configuration of PEFT, with `peft_type`; those left out have the type's own values.

    Rank, alpha, rsLoRA and dropout are the fit's where the type has such a field and the method names no other.

    Args:
        given: Field -> its value as typed. Without `peft_type` it is LoRA.
        options: The fit's options under `pera`.

    Raises:
        ConfigError: PEFT is missing, or has no such type, field or value; or the type needs more than `fit` gives it.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    require("A method of PEFT", "peft")
    kind = _type_named(given.get("peft_type", "LORA"))
    named = {name: value for name, value in given.items() if name != "peft_type"}
    _check_fields(kind, named)
    # PEFT writes it into a type that no value has: "pissa_niter_[number of iters]".
    quick = re.fullmatch(r"pissa_niter_\d+", named.get("init_lora_weights", ""))
    start = named.pop("init_lora_weights") if quick else None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_configuration(kind), fail_untyped=False)
    try:
        parsed = parser.parse_args([f"--{name}={value}" for name, value in named.items()]).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(
            f"PEFT's {kind} does not take the options of the method.",
            got=one_line(error, kind=False),
            expected="values of the types that PEFT documents",
            fix="correct them in --methods",
        ) from error
    chosen = {name: parsed[name] for name in named}
    if start is not None:
        chosen["init_lora_weights"] = start
    _check_values(kind, chosen)
    return {"peft_type": kind, **_shared(kind, options), **chosen}


def left_out(method: Mapping[str, Any], options: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    """What the fit sets that a method of PEFT has nothing to do with, each as a phrase.

    Args:
        method: As `peft_options` gives it.
        options: The fit's options under `pera`.
        arguments: Those of its model.
    """
    kind = method["peft_type"]
    fields, missing = _field_names(kind), []
    if options.get("alpha") is not None and not fields & set(_ALPHAS):
        missing.append(f"pera.alpha {options['alpha']:g}")
    if options.get("dropout") and _dropout_field(kind) is None:
        missing.append(f"pera.dropout {options['dropout']:g}")
    if options.get("use_rslora") and "use_rslora" not in fields:
        missing.append("pera.use_rslora")
    if arguments.get("b_lr_factor", 1.0) != 1.0:
        missing.append(f"b_lr_factor {arguments['b_lr_factor']:g}")
    return missing


def make_configuration(method: Mapping[str, Any], layers: Sequence[str]) -> PeftConfig:
    """PEFT's configuration for layers by their whole names.

    Args:
        method: As `peft_options` gives it.
        layers: Names of the layers.

    Raises:
        ConfigError: PEFT refuses the options.
    """
    options = {name: value for name, value in method.items() if name != "peft_type"}
    kind = method["peft_type"]
    configuration: Any = _configuration(kind)
    # An expression: of a list PEFT takes the names for ends of others.
    every = "|".join(map(re.escape, layers))
    try:
        made: PeftConfig = configuration(target_modules=f"(?:{every})", **options)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(
            f"PEFT's {kind} refuses its options.",
            got=one_line(error, kind=False),
            expected="options that go together, as PEFT documents them, and the packages that it needs",
            fix="correct them in --methods, or install what is missing",
        ) from error
    return made


def check_fit_options(options: Mapping[str, Any]) -> None:
    """Refuse what PERA alone does, so that methods of PEFT would train something else.

    Args:
        options: The fit's options under `pera`.

    Raises:
        ConfigError: One of them is set.
    """
    plain = PeraConfig()
    names = ("rank_pattern", "alpha_pattern", "bias", "trainable_tokens", "init")
    found = [f"pera.{name}" for name in names if options.get(name) and options[name] != getattr(plain, name)]
    if options.get("init_from"):
        found.append("pera.init_from")
    if found:
        raise ConfigError(
            "A method of PEFT would not train what the others do.",
            got=", ".join(found),
            expected="options that mean the same to PEFT: rank, alpha, use_rslora, dropout and names of modules",
            fix="leave them out of the comparison, or compare methods of PERA alone",
        )


_ALPHAS = ("lora_alpha", "alpha")


def _shared(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a type that follow the fit's options."""
    fields = _field_names(kind)
    rank = options.get("rank") or PeraConfig.rank
    alpha, dropout = options.get("alpha"), _dropout_field(kind)
    values = {
        "r": rank,
        **dict.fromkeys(_ALPHAS, rank if alpha is None else alpha),
        "use_rslora": bool(options.get("use_rslora")),
        **({} if dropout is None else {dropout: options.get("dropout") or 0.0}),
    }
    return {name: value for name, value in values.items() if name in fields}


def _dropout_field(kind: str) -> str | None:
    """The field of a type that is dropout on the adapter's input; others drop ranks or layers."""
    own = f"{kind.lower()}_dropout"
    return own if own in _field_names(kind) and kind != "BOFT" else None


def _field_names(kind: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_configuration(kind))}


def _configuration(kind: str) -> type[PeftConfig]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found: dict[Any, type[PeftConfig]] = PEFT_TYPE_TO_CONFIG_MAPPING
    return found[kind]


def _type_named(name: str) -> str:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = [str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    kind = name.upper()
    if kind not in kinds:
        usable = [each for each in kinds if each not in NEEDS_MORE]
        raise ConfigError(
            "PEFT has no method of that type.",
            got=f"{PEFT}peft_type {name}, of {describe('peft')}",
            expected=", ".join(usable),
            fix=did_you_mean(near(kind, usable), "name one of them, or install a newer peft"),
        )
    if kind in NEEDS_MORE:
        raise ConfigError(
            f"PEFT's {kind} cannot be compared.",
            got=f"{PEFT}peft_type {name}, which needs {NEEDS_MORE[kind]}",
            expected="a type that is put into layers and trained by any training loop",
            fix="leave it out of --methods",
        )
    return kind


def _check_fields(kind: str, named: Iterable[str]) -> None:
    """Refuse fields that the type does not have, and those that a comparison sets."""
    fields = _field_names(kind) - {"peft_type"}
    for name in named:
        if name in OF_THE_FIT:
            raise ConfigError(
                "Methods of a comparison train the same parts of the model.",
                got=f"{PEFT}{name}",
                expected="an option that says how a layer is adapted, not which",
                fix=f"use {OF_THE_FIT[name]}" if OF_THE_FIT[name] else "leave it out",
            )
        if name not in fields:
            raise ConfigError(
                f"PEFT's {kind} has no such option.",
                got=f"{PEFT}{name}",
                expected=", ".join(sorted(fields - OF_THE_FIT.keys())),
                fix=did_you_mean([f"{PEFT}{each}" for each in near(name, sorted(fields))], "use one of them"),
            )


def _check_values(kind: str, found: Mapping[str, Any]) -> None:
    """Refuse values that need more than a training loop, or that PEFT would fail at later."""
    start = found.get("init_lora_weights")
    if isinstance(start, str) and start.lower() in STARTS_NEED_MORE:
        raise ConfigError(
            "This start of LoRA needs a pass over data or the floating base before training.",
            got=f"{PEFT}init_lora_weights {start} of {kind}",
            expected="a start that PEFT computes from the weights alone: true, gaussian, pissa, olora, orthogonal",
            fix="choose one of them",
        )
    rank = found.get("r")
    if isinstance(rank, int) and rank < 1 and kind != "OFT":
        raise ConfigError(
            "The rank of an adapter is how many rows its factor has.",
            got=f"{PEFT}r {rank}",
            expected="a whole number of 1 or more",
            fix="correct it in --methods, or leave it out: then it is the fit's",
        )
