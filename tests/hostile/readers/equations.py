"""What a folder's files say that the adapted model is, from the equations alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.hostile.mutations.tensors import read_tensors
from tests.hostile.outcomes import Wrong
from tests.support.reference import reference_delta_weight, reference_monomials

State = dict[str, Tensor]
_ROUNDING = 2e-3
"""Relative to the largest value: outputs of another order of operations in float32."""


def change_of(plan: Mapping[str, Any], options: Mapping[str, Any], A: Tensor, B: Tensor, h: Tensor | None) -> Tensor:
    """dW of a layer in float64, (out, in), from a layer's entry and the options of `adapter_config.json`."""
    rank, order, terms = plan["rank"], options["order"], options["terms"]
    if tuple(A.shape) != (rank, A.shape[1]) or tuple(B.shape) != (B.shape[0], rank):
        raise Wrong(f"factors {tuple(A.shape)} and {tuple(B.shape)} were accepted for rank {rank}")
    indices = reference_monomials(rank, order, terms)
    if (0 if h is None else h.numel()) != len(indices):
        raise Wrong(f"{h.numel() if h is not None else 0} coefficients were accepted for {len(indices)} monomials")
    if h is not None:
        scale = options["coefficient_scale"]
        factors = [math.sqrt(3 * A.shape[1]) ** (len(i) - 1) if scale == "auto" else scale for i in indices]
        h = h.double() * torch.tensor(factors, dtype=torch.float64)
    alpha = rank if plan["alpha"] is None else plan["alpha"]
    scaling = alpha / (math.sqrt(rank) if options["use_rslora"] else rank)
    return reference_delta_weight(A, B, h, order, terms, scaling)


def changes(folder: Path) -> tuple[State, dict[str, Any], State]:
    """Of an adapter folder: dW by layer, the config, and all tensors.

    Raises:
        Wrong: It cannot be told, so that it should not have been accepted.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = read_tensors(folder / "adapter_model.safetensors")
        found = {
            name: change_of(
                plan,
                config["config"],
                tensors[f"{name}.pera_A"],
                tensors[f"{name}.pera_B"],
                tensors.get(f"{name}.pera_h"),
            )
            for name, plan in config["layers"].items()
        }
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"accepted, though its files say nothing: {type(error).__name__}: {error}") from error
    return found, config, tensors


def state_of(base: nn.Module, folder: Path) -> State:
    """The state dict of a plain model that computes what the base does with a folder's adapter."""
    found, config, tensors = changes(folder)
    state = {name: value.double() if value.is_floating_point() else value for name, value in base.state_dict().items()}
    shared = {name: id(value) for name, value in base.state_dict(keep_vars=True).items()}
    modules = dict(base.named_modules())

    def add(name: str, change: Tensor, rows: Any = slice(None)) -> None:
        for other, tensor in shared.items():
            if tensor == shared[f"{name}.weight"]:
                state[other] = state[other].clone()
                state[other][rows] += change

    for key, value in tensors.items():
        if ".pera_" not in key and not key.endswith(".token_rows.delta"):
            # Biases of adapted layers are named within these.
            state[key.replace(".base_layer.", ".")] = value.double()
    for name, change in found.items():
        add(name, change.T if isinstance(modules[name], nn.Embedding) else change)
    for name, plan in config.get("token_rows", {}).items():
        add(name, tensors[f"{name}.token_rows.delta"].double(), torch.tensor(plan["ids"]))
    return state


def check_close(found: Tensor, expected: Tensor, what: str = "outputs", rounding: float = _ROUNDING) -> None:
    """Raise Wrong unless the values are finite and those expected."""
    if not found.isfinite().all():
        raise Wrong(f"{what} are not finite")
    if found.shape != expected.shape:
        raise Wrong(f"{what} of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    error = (found.double() - expected.double()).abs().max() if found.numel() else torch.zeros(())
    if not error <= rounding * max(float(expected.abs().max()), 1e-6):
        raise Wrong(f"{what} differ by {float(error):.3g} of {float(expected.abs().max()):.3g}")


def picture(model: nn.Module) -> list[Any]:
    """All that a refused load may not change."""
    modules = [
        (name, type(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()
    ]
    flags = [(name, parameter.requires_grad, parameter.dtype) for name, parameter in model.named_parameters()]
    values = [(name, value.detach().clone().view(torch.uint8).numpy().tobytes()) for name, value in _tensors(model)]
    return [modules, flags, values]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.contiguous().reshape(-1)) for name, value in model.state_dict().items()]
