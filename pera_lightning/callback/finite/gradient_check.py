"""A run stops at gradients that are not finite, though the loss was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pera_lightning.callback.finite import late_number
from pera_lightning.callback.finite.diverged import anywhere, diverged, parameter_names
from pera_lightning.callback.finite.late_number import LateNumbers
from pera_lightning.callback.finite.loss_check import LossCheck, grad_scaler
from pera_lightning.callback.finite.skipped_steps import SkippedSteps
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.errors import TrainingError
from pera_lightning.functional.distributed import is_distributed, own_part


class _Noted(NamedTuple):
    flags: LateNumbers
    parameters: Sequence[Tensor]
    trainer: Any
    step: int
    epoch: int
    bad_loss: Tensor | None
    joint: bool


class GradientCheck:
    """Judges what an optimizer is about to step with: after all hooks, and after clipping.

    On a CPU before the step. A GPU would wait for Python in every step, so there a fused optimizer of torch is given
    the answer on the device, as a GradScaler gives it, and leaves the step out; Python learns it one backward pass
    later, and before anything is written. Other optimizers have made the step by then; the error says so.

    Under a GradScaler infinite gradients are part of the search for a scale.

    Args:
        losses: Tells the loss that the gradients are of.
    """

    def __init__(self, losses: LossCheck) -> None:
        self._losses = losses
        self._plugin: Any = None
        self.forget()

    def forget(self) -> None:
        """After a run."""
        plugin, self._plugin = self._plugin, None
        if plugin is not None:
            plugin.__dict__.pop("_after_closure", None)
        self._noted: _Noted | None = None
        self._held: Any = None
        self.skipped = SkippedSteps()

    def watch(self, trainer: Any) -> None:
        """Put a function in the way between the end of an optimizer's closure and its step.

        A callback's hook comes before the module's own and before clipping, which may mend or spoil gradients.
        """
        self.forget()
        plugin = self._plugin = trainer.precision_plugin

        def after_closure(model: Any, optimizer: Any) -> None:
            plugin_class._after_closure(plugin, model, optimizer)
            self.note(trainer, optimizer, by_hand=not model.automatic_optimization)

        plugin_class: Any = type(plugin)
        plugin.__dict__["_after_closure"] = after_closure

    @torch.no_grad()
    def note(self, trainer: Any, optimizer: Any, *, by_hand: bool = False) -> None:
        """Before a step.

        Args:
            trainer: The Trainer.
            optimizer: What is going to step.
            by_hand: Whether the module steps its optimizers itself.

        Raises:
            TrainingError: These gradients are not finite (on a GPU: those of the step before).
        """
        self.look()
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        flags = _flags(parameters, trainer.strategy.root_device)
        seen, self._losses.seen = self._losses.seen, None
        if trainer.world_size > 1 and not _are_averaged(parameters):
            flags = flags if seen is None else torch.maximum(flags, seen)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        numbers = LateNumbers(flags)
        scaler = grad_scaler(trainer)
        if scaler is not None:
            self.skipped.note(trainer, scaler, numbers)
            return
        self._noted = _Noted(
            numbers, parameters, trainer, trainer.global_step, trainer.current_epoch, seen, not by_hand
        )
        if not numbers.late:
            self.look()
        elif _skips_by_itself(optimizer):
            self._held = optimizer
            optimizer.found_inf = flags.amax()

    def look(self) -> None:
        """Before the next backward pass, before a checkpoint is written, or when the training ends.

        Raises:
            TrainingError: The gradients of the last step were not finite.
        """
        noted, self._noted = self._noted, None
        if noted is None:
            return
        flags = noted.flags.read_all()
        held, self._held = self._held, None
        if held is not None:
            del held.found_inf
        if any(flags):
            raise _spoiled(noted, flags, self._losses)


def _skips_by_itself(optimizer: Any) -> bool:
    """Whether it is one of torch's fused optimizers, which take `found_inf`."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and getattr(optimizer, "_step_supports_amp_scaling", False)


def _are_averaged(parameters: Sequence[Tensor]) -> bool:
    """Whether all processes have the same gradients, as DDP leaves them; DeepSpeed keeps them elsewhere."""
    return any(value.grad is not None for value in parameters) and not any(map(is_distributed, parameters))


def _flags(parameters: Sequence[Tensor], device: torch.device) -> Tensor:
    """Whether a gradient is not finite, as 1 or 0: on a GPU one for each parameter, else one for all together."""
    gradients = {index: _plain(value.grad) for index, value in enumerate(parameters) if value.grad is not None}
    # Of those without a value torch knows no largest one.
    groups: defaultdict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = defaultdict(dict)
    for index, gradient in gradients.items():
        if gradient.numel():
            groups[gradient.device, gradient.dtype][index] = gradient
    if device.type not in late_number.ASYNCHRONOUS:
        return torch.stack([torch.zeros((), device=device), *(_any_flag(group) for group in groups.values())]).amax(
            dim=0, keepdim=True
        )
    flags = [torch.zeros((), device=device)] * len(parameters)
    for group in groups.values():
        found = torch.stack(torch._foreach_norm(list(group.values()), torch.inf)).isfinite().logical_not().float()
        for index, flag in zip(group, found.to(device, non_blocking=True).unbind(), strict=True):
            flags[index] = flag
    return torch.stack(flags) if flags else torch.zeros(1, device=device)


def _any_flag(group: dict[int, Tensor]) -> Tensor:
    """GradScaler's way, which is quicker on a CPU than to find the largest value of each."""
    device = next(iter(group.values())).device
    found, one = torch.zeros((), device=device), torch.ones((), device=device)
    torch._amp_foreach_non_finite_check_and_unscale_(list(group.values()), found, one)
    return found


def _plain(gradient: Tensor) -> Tensor:
    """What this process holds, dense and real; `data` so that autograd does not take it for changed."""
    own = own_part(gradient).data
    own = own._values() if own.is_sparse else own
    return torch.view_as_real(own) if own.is_complex() else own


def _spoiled(noted: _Noted, flags: Sequence[float], losses: LossCheck) -> TrainingError:
    place = f"{losses.last()} at step {noted.step}, epoch {noted.epoch}"
    bad = noted.bad_loss is not None and bool(noted.bad_loss)
    if noted.joint and anywhere(noted.trainer, found=bad):
        where = place if bad else f"another process's; {place}"
        return diverged(noted.trainer, "The loss is", where, joint=True, batch=losses.batch)
    where = f"{_where(noted, flags)} under {place}"
    return diverged(noted.trainer, "Gradients are", where, joint=noted.joint, batch=losses.batch)


def _where(noted: _Noted, flags: Sequence[float]) -> str:
    """The gradients that are not finite, in words; on a GPU they are gone by now."""
    names = parameter_names(noted.trainer)
    named = {names.get(id(value), f"parameter {index}"): value for index, value in enumerate(noted.parameters)}
    if noted.flags.late:
        bad = [name for name, flag in zip(named, flags, strict=True) if flag]
        return f"gradients of {len(bad)} of {len(named)} tensors, e.g. of {bad[0]!r},"
    found = not_finite({name: value.grad for name, value in named.items() if value.grad is not None})
    return f"gradients: {describe_infinite(found)}" if found else "gradients of another process"
