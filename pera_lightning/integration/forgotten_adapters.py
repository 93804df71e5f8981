"""Optimizers that were made before the adapters."""

from __future__ import annotations

import lightning.pytorch as pl

from pera_lightning.errors import TrainingError


def refuse_forgotten_adapters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Raise if an optimizer steps the module's parameters but not its adapters."""
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = dict(pl_module.named_parameters())
    # Strategies that give the optimizer tensors of their own (DeepSpeed) cannot be looked through.
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
