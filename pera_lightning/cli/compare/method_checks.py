"""Whether a method of a comparison can run at all, asked before the first run: the tenth one may be hours away."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pera_lightning.base_layers import check_bitsandbytes
from pera_lightning.callback.callback import PeraCallback
from pera_lightning.cli.compare.comparison_methods import Method
from pera_lightning.cli.compare.peft_options import check_fit_options, left_out, make_configuration, peft_options
from pera_lightning.cli.screen import tell
from pera_lightning.errors import ConfigError, PeraError

POLYNOMIAL = [f"--pera.{name}" for name in ("order", "terms", "coefficient_scale", "polynomial_start_step")]
"""Options of PERA that a method of PEFT can have nothing of."""


def check_method(method: str, options: Mapping[str, Any]) -> None:
    """Make what checks its options: the callback, and a model of ours, which loads nothing yet.

    Somebody else's model and the data are checked by the first run.

    Args:
        method: Name of the method.
        options: All options of its fit, parsed.

    Raises:
        ConfigError: An option has a value it cannot have, or a package that it needs is missing.
    """
    model = options["model"]
    module, _, name = (model.get("class_path") or "").rpartition(".")
    arguments = model.get("init_args") or {}
    try:
        PeraCallback(**options["pera"])
        if module.partition(".")[0] == "pera_lightning":
            getattr(import_module(module), name)(**arguments)
            if arguments.get("optimizer", "adamw") != "adamw":
                check_bitsandbytes()
    except PeraError as error:
        raise ConfigError(
            f"The method {method} cannot run.",
            got=error.in_short,
            expected="methods that can, before the first of them trains",
            fix=error.cure,
        ) from error


def check_peft_method(name: str, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of PEFT's configuration for a method, tried on a name of a layer; tells what it leaves out of the fit.

    Args:
        name: Name of the method.
        method: Its options.
        options: All options of its fit, parsed.

    Raises:
        ConfigError: PEFT refuses them, or the fit does what PEFT does not.
    """
    of_ours = [word for word in method.words if word.partition("=")[0] in POLYNOMIAL]
    if of_ours:
        raise ConfigError(
            f"The method {name} is PEFT's and PERA's at a time.",
            got=" ".join(of_ours),
            expected="options of one of them beside --peft",
            fix="leave them out, or make two methods of it",
        )
    check_fit_options(options["pera"])
    found = peft_options(method.peft, options["pera"])
    make_configuration(found, ["layer"])
    missing = left_out(found, options["pera"], options["model"].get("init_args") or {})
    if missing:
        tell(f"{name}: PEFT's {found['peft_type']} takes no part in {', '.join(missing)}.")
    return found
