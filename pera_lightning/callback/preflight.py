"""What is looked at before a run spends hours: quick checks, each with a name by which it can be skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from pera_lightning.base_layers import base_of
from pera_lightning.callback.copied_networks import still_copies
from pera_lightning.errors import ConfigError, TrainingError
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.injection import adapted_layers, adapter_layers, adapter_parameters, saved_modules
from pera_lightning.injection.copies import following
from pera_lightning.injection.targets.output_head import output_head
from pera_lightning.injection.untrained import is_untrained
from pera_lightning.layers import PeraLinear
from pera_lightning.run_log.messages import rank_zero_warn

LEAST_LEARNING_RATE = 2e-5
"""Adam's rate below which adapters hardly move; they are trained with 1e-4 to 1e-3."""
LEAST_WEIGHTS = 256
"""Of fewer weights it cannot be said how they were drawn."""
INITIALIZER_RANGE = 0.02
"""Standard deviation from which transformers draws new heads."""


class Preflight:
    """Checks a run at its start.

    | name | what it finds | |
    |---|---|---|
    | base | base parameters that require gradients | error |
    | optimizer | adapter parameters in no optimizer | error |
    | factors | factors that are not floating numbers or do not require gradients | error |
    | epsilon | an optimizer of torch whose eps is 0 in float16, so that a gradient of 0 makes a weight NaN | error |
    | mode | adapters in eval mode, so that their dropout does nothing | warning |
    | head | a frozen output head that looks freshly initialised over a trained model | warning |
    | learning_rate | an Adam whose rate is far below what adapters need | warning |
    | gradients | a loss that depends on nothing that is trained | error |
    | | adapters that the first backward does not reach | warning |
    | untrained | a test, validation or prediction with adapters that nobody has trained or loaded | warning |

    Args:
        skip: Names of checks to leave out.

    Raises:
        ConfigError: `skip` holds a name that is none.
    """

    def __init__(self, skip: Collection[str] = ()) -> None:
        unknown = sorted(set([skip] if isinstance(skip, str) else skip) - CHECKS.keys() - set(_LATER))
        if unknown:
            raise ConfigError(
                "There is no check of this name to skip.",
                got=f"skip_checks with {unknown[0]!r}",
                expected=f"a list of {', '.join((*CHECKS, *_LATER))}",
                fix="correct the name",
            )
        self.skip = frozenset(skip)
        self._awaits_backward = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the checks that need no batch.

        Raises:
            TrainingError: The run would not train the adapter, or not the adapter alone.
        """
        # Steps by hand may take the layers in turns.
        self._awaits_backward = "gradients" not in self.skip and pl_module.automatic_optimization
        for name, check in CHECKS.items():
            if name not in self.skip:
                check(trainer, pl_module)

    def on_evaluation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether a test, validation or prediction would be the base's."""
        command: Any = trainer.state.fn
        if command != TrainerFn.FITTING and "untrained" not in self.skip and is_untrained(pl_module):
            rank_zero_warn(
                f"PERA: {command.value} runs the base: nobody has trained the adapters or loaded any. Name a "
                "checkpoint of the fit, ckpt_path=..., or call load_adapter(model, folder) before. If the base's own "
                "results are wanted, say so. (Check 'untrained'; PeraCallback(skip_checks=...).)"
            )

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Look at the first loss.

        Raises:
            TrainingError: No gradient can come of it.
        """
        if self._awaits_backward and not loss.requires_grad:
            raise TrainingError(
                "The loss depends on nothing that is trained.",
                got="a loss that carries no gradient",
                expected="a loss that is computed through the adapters",
                fix="compute it outside of torch.no_grad() and without detach(); some models pass gradients on only to "
                "inputs that require them (reversible layers, reentrant checkpointing): call "
                "model.enable_input_require_grads(), which transformers models have, before the fit",
            )

    def on_after_backward(self, pl_module: pl.LightningModule) -> None:
        """Look at the gradients of the first backward."""
        if not self._awaits_backward:
            return
        self._awaits_backward = False
        layers = dict(_trained_layers(pl_module))
        without = [name for name, layer in layers.items() if layer.pera_B.grad is None]
        still = still_copies(pl_module, without) if without else set()
        without = [name for name in without if name not in still]
        # Without any gradient there would be no backward: DeepSpeed keeps them elsewhere.
        if 0 < len(without) < len(layers):
            rank_zero_warn(
                f"PERA: the first backward reached {len(layers) - len(without)} of {len(layers)} adapted layers; not, "
                f"for example, {without[0]!r}. If the model never calls these layers, or detaches what goes through "
                "them, leave them out with exclude_modules. (Check 'gradients'; PeraCallback(skip_checks=...).)"
            )


def _optimizer(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    stepped = {id(value) for optimizer in trainer.optimizers for group in _stepped(optimizer) for value in group}
    parameters = dict(pl_module.named_parameters())
    # Strategies that give the optimizer tensors of their own cannot be looked through.
    if not any(id(parameter) in stepped for parameter in parameters.values()):
        return
    forgotten = [name for name, value in parameters.items() if value.requires_grad and id(value) not in stepped]
    if forgotten:
        raise TrainingError(
            "Trainable parameters are in no optimizer and would stay as they are.",
            got=f"{len(forgotten)} forgotten, e.g. {forgotten[0]!r}",
            expected="every adapter parameter in an optimizer",
            fix="make the optimizer in configure_optimizers, from self.parameters(); an optimizer that was made in "
            "__init__ or given to LightningCLI in YAML is older than the adapters",
        )


def _trained_layers(pl_module: pl.LightningModule) -> Iterator[tuple[str, PeraLinear]]:
    """The adapted layers, without those of copies that only follow others."""
    copied = following(pl_module)
    return ((name, layer) for name, layer in adapted_layers(pl_module) if id(layer) not in copied)


def _stepped(optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """The parameters of each group; DeepSpeed's ZeRO steps copies of them, and notes which are whose."""
    own: list[list[nn.Parameter]] | None = getattr(optimizer, "bit16_groups", None)
    return [group["params"] for group in optimizer.param_groups] if own is None else own


def _base(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    adapter = {id(value) for value in adapter_parameters(pl_module)}
    thawed = [name for name, value in pl_module.named_parameters() if value.requires_grad and id(value) not in adapter]
    if thawed:
        raise TrainingError(
            "A part of the frozen base would be trained; checkpoints would not hold it.",
            got=f"{len(thawed)} base parameters that require gradients, e.g. {thawed[0]!r}",
            expected="gradients for the adapter, trained biases and modules_to_save only",
            fix="do not set requires_grad in setup(), configure_model() or another callback; name what is to be "
            "trained in modules_to_save",
        )


def _factors(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    copied = following(pl_module)
    wrong = [
        f"{layer}.{name}"
        for layer, module in adapter_layers(pl_module)
        if id(module) not in copied
        for name, value in module.adapter().items()
        if not value.is_floating_point() or not value.requires_grad
    ]
    if wrong:
        raise TrainingError(
            "A part of the adapter cannot be trained.",
            got=f"{len(wrong)} tensors that are frozen or no floating numbers, e.g. {wrong[0]!r}",
            expected="floating factors that require gradients",
            fix="quantise the base before the adapters come, and freeze no part of the adapter; to hold h at zero for "
            "a while use polynomial_start_step",
        )


def _epsilon(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """B starts at zero, so A's first gradient is 0, and its first step 0 / (0 + eps)."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups if type(optimizer).__module__.startswith("torch.optim.") else ():
            eps, half = group.get("eps"), any(value.dtype == torch.float16 for value in group["params"])
            # Fused ones compute in float32.
            if half and isinstance(eps, float) and not group.get("fused") and torch.tensor(eps).half() == 0:
                raise TrainingError(
                    "The first step would make the weights NaN.",
                    got=f"{type(optimizer).__name__} with eps={eps:g} on float16 weights, in which that is 0",
                    expected="weights of another dtype, or a larger eps",
                    fix="use the precision bf16-true, 32-true or 16-mixed; or eps=1e-4, with which float16 still loses "
                    "the squares of gradients below 2e-4",
                )


def _mode(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    idle = [name for name, layer in _trained_layers(pl_module) if layer.config.dropout > 0 and not layer.training]
    if idle:
        rank_zero_warn(
            f"PERA: {len(idle)} adapted layers, for example {idle[0]!r}, are in eval mode, in which the adapter's "
            "dropout does nothing; models come so from from_pretrained. Call model.train() where you load it. "
            "(Check 'mode'; PeraCallback(skip_checks=...).)"
        )


def _head(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    adapted = [layer for _, layer in adapter_layers(pl_module)]
    if looks_fresh(adapted[0].base_layer):
        # Nothing was pretrained here.
        return
    trained = [*adapted, *(saved for _, saved in saved_modules(pl_module))]
    within = {id(part) for module in trained for part in module.modules()}
    modules = dict(pl_module.named_modules())
    frozen = [name for name in sorted(output_head(pl_module)) if id(modules[name]) not in within]
    fresh = [name for name in frozen if looks_fresh(modules[name])]
    if fresh:
        rank_zero_warn(
            f"PERA: the output head {fresh[0]!r} is frozen and looks freshly initialised; the adapter would train "
            f"below a random head. Train it too, with PeraCallback(modules_to_save=[{fresh[0]!r}]). "
            "(Check 'head'; PeraCallback(skip_checks=...).)"
        )


@torch.no_grad()
def looks_fresh(layer: nn.Module) -> bool:
    """Whether a linear layer's weights look as `nn.Linear` or transformers draw them, quantised or not.

    `nn.Linear` draws weights and biases evenly from [-1 / sqrt(in), 1 / sqrt(in)]; transformers draws weights from a
    normal distribution of standard deviation 0.02 and sets biases to zero.
    """
    base = base_of(layer)
    stored: Any = None if base is None else base.storage(layer)
    if base is None or stored.is_meta or stored.dim() != 2 or is_distributed(stored):
        # Not here, or here in part only: sharded over processes.
        return False
    weight, bias = base.weight(layer), getattr(layer, "bias", None)
    # Some rows tell enough of a head with a row for every token.
    weight = weight[:: math.ceil(len(weight) / 64)].float()
    if weight.numel() < LEAST_WEIGHTS:
        return False
    spread = weight.std().item()
    bound = 1 / math.sqrt(weight.shape[1])
    # Three standard errors of a spread estimated from so many weights.
    tolerance = min(0.1, 3 / math.sqrt(2 * weight.numel()))
    even = math.isclose(spread, bound / math.sqrt(3), rel_tol=tolerance) and _within(weight, bound)
    normal = math.isclose(spread, INITIALIZER_RANGE, rel_tol=tolerance)
    if bias is None:
        return even or normal
    return (even and _within(bias, bound)) or (normal and not bias.any())


def _within(values: torch.Tensor, bound: float) -> bool:
    return values.abs().max().item() <= bound * 1.01


def _learning_rate(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    adapter = {id(value) for _, layer in adapter_layers(pl_module) for value in layer.adapter().values()}
    rates = list(_adam_rates(trainer.optimizers, adapter))
    if rates and max(rates) < LEAST_LEARNING_RATE:
        rank_zero_warn(
            f"PERA: the learning rate {max(rates):.1e} is one for training whole models; adapters need about ten times "
            "as much, from 1e-4 to 1e-3. (Check 'learning_rate'; PeraCallback(skip_checks=...).)"
        )


def _adam_rates(optimizers: Iterable[torch.optim.Optimizer], adapter: Collection[int]) -> Iterable[float]:
    for optimizer in optimizers:
        # DeepSpeed's holds the one that was given to it.
        if "adam" not in type(getattr(optimizer, "optimizer", optimizer)).__name__.lower():
            continue
        for group, parameters in zip(optimizer.param_groups, _stepped(optimizer), strict=True):
            if any(id(value) in adapter for value in parameters):
                # A schedule may begin at zero; it notes the rate that it works with.
                yield float(group.get("initial_lr", group["lr"]))


CHECKS: dict[str, Callable[[pl.Trainer, pl.LightningModule], None]] = {
    "base": _base,
    "optimizer": _optimizer,
    "factors": _factors,
    "mode": _mode,
    "head": _head,
    "learning_rate": _learning_rate,
    "epsilon": _epsilon,
}
"""Name -> check, in their order."""
_LATER = ("gradients", "untrained")
"""Checks of the first backward pass, and of what is no fit."""
