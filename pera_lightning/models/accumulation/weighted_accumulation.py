"""Steps whose gradient is that of all their tokens (or rows) together, however they were cut into batches."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor
from typing_extensions import override

from pera_lightning.errors import ConfigError
from pera_lightning.functional.distributed import own_part, whole
from pera_lightning.models.accumulation.batch_count import number, one_element, unless_empty
from pera_lightning.models.parallel.strategy_kind import kind_of
from pera_lightning.run_log.messages import rank_zero_warn

# On the module: its own.
_ATTRIBUTE = "_weighted_accumulation"


class WeightedAccumulation(pl.Callback):
    """Makes an optimizer step follow the mean loss over everything it has seen, and not the mean of its batches' means.

    Where batches hold unequal numbers of tokens that count, Lightning's accumulated gradient is another than that of
    one large batch: it averages the batches, over an accumulation and over processes alike, and divides by
    `accumulate_grad_batches` in the last, shorter accumulation of an epoch too. With this,

        class Mine(LightningModule):
            def __init__(self):
                super().__init__()
                self.accumulation = WeightedAccumulation(self, "train_loss")

            def training_step(self, batch, batch_idx):
                loss = cross_entropy(self(batch), batch["labels"], ignore_index=-100)
                return self.accumulation.weigh(loss, count=(batch["labels"] != -100).sum())

    the gradient that is clipped and stepped with is that of all tokens of the accumulation in all processes. With one
    process and without accumulation nothing is changed. It joins the Trainer's callbacks by itself, and no step waits
    for a GPU. For DDP, FSDP1, FSDP2 and tensor parallelism; under DeepSpeed, which keeps the gradients to itself, the
    batches of an accumulation weigh alike.

    Terms that are added to the weighed loss take part with the batch's tokens too: one that does not depend on the
    batch, as a penalty on weights, counts once a step.

    With manual optimization add such terms before `weigh`, and call `average` where gradients are read or clipped
    before `optimizer.step()`, which does it otherwise.

    Args:
        module: The module whose `training_step` weighs its losses.
        loss_name: Name under which `loss` is logged at every optimizer step; None: it is not logged.

    Attributes:
        loss: Mean loss over all tokens of the last optimizer step, in all processes: a float32 scalar on the device;
            None before the first step.
    """

    def __init__(self, module: pl.LightningModule, loss_name: str | None = None) -> None:
        self.loss: Tensor | None = None
        self._module = module
        vars(module)[_ATTRIBUTE] = self
        self._loss_name = loss_name
        # What this process has weighed since the last step: number of tokens, and sum of their losses.
        self._window: Tensor | None = None
        # The same of a batch whose backward pass has not ended; one that fails takes no part.
        self._pending: Tensor | None = None
        # What the whole gradient of that batch is scaled by; a bool where nothing but an empty batch changes anything.
        self._scale: Tensor | bool | None = None
        # A weight of 1. Sums over thousands of tokens would overflow under the loss scale of fp16.
        self._reference: Tensor | None = None

    @staticmethod
    def of(module: pl.LightningModule) -> WeightedAccumulation | None:
        """The one that was made for the module, if any."""
        return vars(module).get(_ATTRIBUTE)

    def weigh(self, loss: Tensor, count: int | Tensor) -> Tensor:
        """Let a loss take part in its step with a weight; in `training_step`, in every process once for every batch.

        Args:
            loss: Mean loss of the batch, a scalar.
            count: How many tokens (rows, ...) it is the mean of: a number, or a tensor of one element, which stays on
                its device. With 0 the batch takes no part, and its loss, whatever it is, becomes 0.

        Returns:
            The loss, of the same value. What `training_step` returns has its whole gradient scaled, and with manual
            optimization this loss has. Outside of a Trainer's training as it came.

        Raises:
            ConfigError: There are several optimizers, each of which would need weights of its own; a second loss of
                the same batch; or a count of several elements.
        """
        trainer = self._module._trainer
        if trainer is None or not trainer.training:
            return loss
        count = one_element(count)
        self._join(trainer)
        self._take_one_loss(trainer)
        weighed = unless_empty(loss, count)
        if self._is_alone(trainer):
            self.loss = weighed.detach().float()
            present = count > 0
            self._scale = present if self._scale is None else self._scale | present
            return weighed
        tokens = number(count, loss.device)
        self._pending = self._totals(tokens, whole(weighed.detach()).float().mean())
        weight = self._weight(trainer, tokens)
        if _is_automatic(trainer):
            self._scale = weight
        else:
            # There may be several losses, and backward passes that no hook tells of.
            _scale_gradient(loss, weight)
        return weighed

    def _join(self, trainer: pl.Trainer) -> None:
        # Also the callbacks that Lightning's tuner runs with, in place of all others.
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self in callbacks:
            return
        if len(trainer.optimizers) > 1:
            raise ConfigError(
                "WeightedAccumulation does not know which losses belong to which optimizer.",
                got=f"{type(self._module).__name__} with {len(trainer.optimizers)} optimizers",
                expected="a module with one optimizer",
                fix="weigh the losses by hand: their sums, and before each optimizer's step its gradients over the "
                "number of tokens",
            )
        if "dataloader_iter" in inspect.signature(self._module.training_step).parameters:
            raise ConfigError(
                "WeightedAccumulation counts batches, which a step that takes the loader's iterator fetches by itself.",
                got=f"{type(self._module).__name__}.training_step(dataloader_iter)",
                expected="training_step(batch)",
                fix="take the batch as an argument",
            )
        if kind_of(trainer.strategy).hides_gradients and trainer.accumulate_grad_batches > 1:
            rank_zero_warn(
                "DeepSpeed accumulates gradients where nobody else reaches them: the "
                f"{trainer.accumulate_grad_batches} batches of an optimizer step weigh alike, whatever number of "
                "tokens they hold (over processes every token does). Under DDP or FSDP2 every token weighs alike."
            )
        callbacks.append(self)
        self._forget()
        self._follow(trainer)

    def _follow(self, trainer: pl.Trainer) -> None:
        """Average before a step of the optimizer itself, too, of which Lightning does not tell."""
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.Optimizer):
                optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trainer = self._module._trainer
        # Of a closure, in which there may be backward passes, Lightning tells.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if trainer is not None and not _is_automatic(trainer) and closure is None:
            self.average()

    @staticmethod
    def _is_alone(trainer: pl.Trainer) -> bool:
        """Whether every batch is a step by itself."""
        return trainer.world_size == 1 and trainer.accumulate_grad_batches == 1 and _is_automatic(trainer)

    def _take_one_loss(self, trainer: pl.Trainer) -> None:
        """Whether the loss before had its backward pass; by hand it may have had one that no hook tells of."""
        if not _is_automatic(trainer):
            self._take()
        elif self._pending is not None:
            raise ConfigError(
                "A batch has one loss with one number of tokens.",
                got=f"a second call of weigh in one training_step of {type(self._module).__name__}",
                expected="one call for every batch",
                fix="add the losses up to one mean before, or use manual optimization with a backward pass for each",
            )

    @staticmethod
    @torch.no_grad()
    def _totals(tokens: Tensor, loss: Tensor) -> Tensor:
        return torch.stack([tokens, tokens * loss])

    def _take(self) -> None:
        batch, self._pending = self._pending, None
        if batch is not None:
            self._window = batch if self._window is None else self._window.to(batch.device) + batch

    @torch.no_grad()
    def _weight(self, trainer: pl.Trainer, tokens: Tensor) -> Tensor:
        """What the batch's gradient is scaled by until the step."""
        # Lightning divides each loss by the number of batches, of which there may be fewer.
        undivided = tokens * trainer.accumulate_grad_batches
        if kind_of(trainer.strategy).hides_gradients:
            # Which does so itself once more.
            return _ratio(trainer.world_size * undivided, _sum_over_processes(trainer, tokens))
        if self._reference is None:
            batch = _sum_over_processes(trainer, tokens.clone()).div_(trainer.world_size).clamp_(min=1)
            # A power of two, by which nothing is rounded.
            self._reference = batch / torch.frexp(batch).mantissa
        return undivided / self._reference.to(tokens.device)

    @torch.no_grad()
    def average(self) -> None:
        """Scale the optimizer's gradients to those of the mean over everything weighed since the last step.

        Collective where there are several processes. A second call before the next loss does nothing.
        """
        trainer = self._module._trainer
        if trainer is None:
            return
        if not _is_automatic(trainer):
            self._take()
        window, self._window = self._window, None
        if window is None:
            return
        count, total = _sum_over_processes(trainer, window).unbind()
        self.loss = _ratio(total, count)
        if self._reference is None or kind_of(trainer.strategy).hides_gradients:
            return
        # All strategies average over their processes. Those of tensor parallelism, which share their rows, are in
        # both of the numbers.
        scale = _ratio(trainer.world_size * self._reference.to(count.device), count)
        by_device: dict[torch.device, list[Tensor]] = {}
        for group in trainer.optimizers[0].param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = own_part(parameter.grad)
                    by_device.setdefault(gradient.device, []).append(gradient)
        for device, gradients in by_device.items():
            torch._foreach_mul_(gradients, scale.to(device, non_blocking=True))

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Those of a second fit.
        self._follow(trainer)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization:
            return
        # Of a batch that failed, under Lightning's tuner say.
        self._pending = self._scale = None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            # As Lightning discards the gradients.
            self._window = None

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        scale, self._scale = self._scale, None
        if scale is not None and scale is not True:
            _scale_gradient(loss, scale)

    @override
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take()
        # Already here, so that every callback finds the right gradients in on_before_optimizer_step.
        if pl_module.automatic_optimization and not trainer.fit_loop._should_accumulate():
            self.average()

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.average()
        if self._loss_name is not None and pl_module is self._module and self.loss is not None:
            pl_module.log(self._loss_name, self.loss, prog_bar=True)

    def window(self) -> dict[str, Tensor | None]:
        """What a run that goes on within an accumulation needs, beside this process's gradients; on the CPU."""
        parts = {"window": self._window, "reference": self._reference}
        return {name: None if value is None else value.cpu() for name, value in parts.items()}

    def restore(self, window: dict[str, Any]) -> None:
        """Go on with what `window` returned; after the setup of a fit, before its first batch."""
        self._join(self._module.trainer)
        self._window, self._reference = window["window"], window["reference"]

    def _forget(self) -> None:
        self._window = self._pending = self._scale = self._reference = self.loss = None


def _is_automatic(trainer: pl.Trainer) -> bool:
    return trainer.lightning_module.automatic_optimization


def _scale_gradient(loss: Tensor, scale: Tensor | bool) -> None:
    def scaled(gradient: Tensor) -> Tensor:
        factor = scale.to(gradient.device, non_blocking=True) if isinstance(scale, Tensor) else scale
        return (gradient * factor).to(gradient.dtype)

    if loss.requires_grad:
        loss.register_hook(scaled)


def _sum_over_processes(trainer: pl.Trainer, values: Tensor) -> Tensor:
    # Not by the strategy, which lets all processes wait for each other before it.
    if trainer.world_size > 1:
        torch.distributed.all_reduce(values)
    return values


def _ratio(part: Tensor, count: Tensor) -> Tensor:
    """0 where there is nothing."""
    return (part / count).masked_fill(count <= 0, 0.0)
