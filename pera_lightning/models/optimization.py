"""Optimizers of an adapted model and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pera_lightning.base_layers import bitsandbytes, check_bitsandbytes
from pera_lightning.errors import ConfigError
from pera_lightning.run_log.messages import rank_zero_warn

Schedule = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]

FUSING = frozenset({"cuda"})
"""Types of devices on which AdamW steps a group in one kernel; others gain little by it."""


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], learning_rate: float, *, scaled_gradients: bool = False
) -> Optimizer:
    """The AdamW of this name.

    Args:
        name: "adamw" of torch; "adamw_8bit" of bitsandbytes, which keeps its two moments in 8 bits; "paged_adamw_8bit",
            whose moments move to the CPU when the GPU's memory runs out. Without CUDA, which paging needs,
            "adamw_8bit" takes its place.
        groups: As `parameter_groups` makes them.
        learning_rate: Of groups without one of their own.
        scaled_gradients: Whether a GradScaler scales the loss.

    Raises:
        ConfigError: bitsandbytes is missing or too old.
    """
    if name == "adamw":
        # A fused optimizer takes the scale out of the gradients itself, too late for Lightning to clip them.
        return _adamw(groups, learning_rate, fused=not scaled_gradients and _can_fuse(groups))
    check_bitsandbytes()
    optimizers: Any = bitsandbytes().optim
    if name == "paged_adamw_8bit" and not torch.cuda.is_available():
        rank_zero_warn("There is no CUDA device to page from: paged_adamw_8bit runs as adamw_8bit.")
        name = "adamw_8bit"
    kind = optimizers.PagedAdamW8bit if name == "paged_adamw_8bit" else optimizers.AdamW8bit
    return kind(groups, lr=learning_rate)


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    return all(
        # Sharded ones are of another type.
        type(value) is nn.Parameter and value.is_floating_point() and value.device.type in FUSING
        for group in groups
        for value in group["params"]
    )


def _adamw(groups: list[dict[str, Any]], learning_rate: float, *, fused: bool) -> AdamW:
    # None leaves the choice between torch's other two ways to torch.
    optimizer = AdamW(groups, lr=learning_rate, fused=fused or None)

    def keep_choice(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "fused": fused or None} for group in state["param_groups"]]}

    # A checkpoint of a run with another device or precision would bring its own.
    optimizer.register_load_state_dict_pre_hook(keep_choice)
    return optimizer


def warmup_schedule(
    optimizer: Optimizer, *, schedule: Schedule, warmup_ratio: float, total_steps: float, warmup_steps: int = 0
) -> LambdaLR:
    """Linear warm-up from 0, then linear or cosine decay to 0, or a constant rate.

    Args:
        optimizer: The optimizer whose groups' rates are the peaks.
        schedule: What follows the warm-up.
        warmup_ratio: Share of `total_steps` spent warming up, in [0, 1).
        total_steps: Optimizer steps of the whole training, as `trainer.estimated_stepping_batches` estimates
            them; infinite (or negative, as Lightning says for data without a length) where nothing limits it.
        warmup_steps: Steps spent warming up, instead of a share.

    Raises:
        ConfigError: The schedule or the warm-up needs to know the end of a training that has none.
    """
    finite = math.isfinite(total_steps) and total_steps >= 0
    if not finite and (schedule != "constant" or warmup_ratio > 0):
        raise ConfigError(
            "The learning-rate schedule needs to know how long training lasts.",
            got=f"schedule={schedule!r}, warmup_ratio={warmup_ratio} and a training without an end",
            expected="a limit on steps, or on epochs of data with a known length",
            fix="set trainer.max_steps or trainer.max_epochs, or use schedule: constant with warmup_ratio: 0",
        )
    steps = int(total_steps) if finite else 0
    warmup = warmup_steps or math.ceil(warmup_ratio * steps)

    # transformers has these schedules too, but importing them imports peft and bitsandbytes where installed.
    def share_of_peak(step: int) -> float:
        if step < warmup:
            return step / warmup
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, share_of_peak)
