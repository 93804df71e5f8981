"""Optimizer groups of an adapted model: rates of their own for A, B and h."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from pera_lightning.errors import TrainingError
from pera_lightning.layers import PeraLinear


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    b_lr_factor: float = 1.0,
    h_lr_factor: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into optimizer groups; groups without parameters are left out.

    | group | parameters | learning rate | weight decay |
    |---|---|---|---|
    | pera_A | the factors A | learning_rate | weight_decay |
    | pera_B | the factors B | learning_rate * b_lr_factor | weight_decay |
    | pera_h | the coefficients h | learning_rate * h_lr_factor | 0 |
    | other | matrices trained whole, token rows | learning_rate | weight_decay |
    | other_no_decay | biases and norms trained whole | learning_rate | 0 |

    Args:
        named_parameters: Names and parameters, as `nn.Module.named_parameters` gives them; frozen ones are skipped.
        learning_rate: Rate of A, of token rows and of everything trained whole.
        b_lr_factor: Factor on the rate of B.
        h_lr_factor: Factor on the rate of h.
        weight_decay: Decoupled weight decay of AdamW.

    Returns:
        Groups for a torch optimizer; each carries its `name`, which LearningRateMonitor shows.

    Raises:
        TrainingError: No parameter is trainable.
    """
    groups: dict[str, dict[str, Any]] = {
        "pera_A": {"lr": learning_rate, "weight_decay": weight_decay},
        "pera_B": {"lr": learning_rate * b_lr_factor, "weight_decay": weight_decay},
        "pera_h": {"lr": learning_rate * h_lr_factor, "weight_decay": 0.0},
        "other": {"lr": learning_rate, "weight_decay": weight_decay},
        "other_no_decay": {"lr": learning_rate, "weight_decay": 0.0},
    }
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[_group_of(name, parameter)].setdefault("params", []).append(parameter)
    filled = [{"name": name, **group} for name, group in groups.items() if "params" in group]
    if not filled:
        raise TrainingError(
            "Nothing is trainable.",
            got="a model whose parameters are all frozen",
            expected="adapters, or parameters with requires_grad",
            fix="add PeraCallback to the trainer's callbacks, or unfreeze what is to be trained",
        )
    return filled


def _group_of(name: str, parameter: nn.Parameter) -> str:
    own_name = name.rpartition(".")[2]
    if own_name in PeraLinear.ADAPTER_PARAMETERS:
        return own_name
    # Biases and the weights of norms are the vectors of a network.
    return "other" if parameter.ndim > 1 else "other_no_decay"
