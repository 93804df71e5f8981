"""Checkpoints of a Trainer are not written with values that are not finite, so they replace nothing good."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl

from pera_lightning.callback.finite.diverged import anywhere, cures, infinite_moments
from pera_lightning.callback.finite.last_good import where_to_go_on
from pera_lightning.checkpoint.finite_values import describe_infinite, infinite_values
from pera_lightning.errors import TrainingError

# Under the second name averaging callbacks keep what is being trained.
_MODELS = ("state_dict", "current_model_state")


def guard_checkpoints(trainer: pl.Trainer) -> None:
    """Have everything that the Trainer saves from now on looked at before.

    A callback's `on_save_checkpoint` is not called with `save_weights_only=True`, and sees neither what others put into
    the checkpoint nor whether it will be written; so a function is put in the way of the strategy's `save_checkpoint`.
    It stays there after the run, which may be saved then too.
    """
    own = vars(trainer.strategy).get("save_checkpoint")
    if not (isinstance(own, partial) and own.func is _save_finite):
        trainer.strategy.__dict__["save_checkpoint"] = partial(_save_finite, trainer.strategy, own)


def _save_finite(strategy: Any, own: Any, checkpoint: dict[str, Any], filepath: Any, **options: Any) -> None:
    """Save a checkpoint if all processes have finite values for it; collective.

    Raises:
        TrainingError: They are not finite. Whatever file was there is as it was.
    """
    trainer = strategy.lightning_module.trainer
    found = _infinite(strategy.lightning_module, checkpoint)
    moments = infinite_moments(trainer) if "optimizer_states" in checkpoint else {}
    if anywhere(trainer, found=bool(found or moments)):
        named = [f"{describe_infinite(part)}" for part in (found, moments) if part]
        raise TrainingError(
            "A checkpoint would hold values that are not finite; it is not written, and replaces nothing.",
            got=f"{' and '.join(named) or 'values of another process'} at step {trainer.global_step}, for {filepath}",
            expected="finite weights and moments",
            fix=f"{cures(trainer)}; {where_to_go_on(trainer)}",
        )
    (own or partial(type(strategy).save_checkpoint, strategy))(checkpoint, filepath, **options)


def _infinite(module: pl.LightningModule, checkpoint: dict[str, Any]) -> dict[str, int]:
    tensors: dict[str, Any] = {}
    for model in _MODELS:
        held = checkpoint.get(model)
        tensors |= {name: value for name, value in held.items() if hasattr(value, "dtype")} if held else {}
    return infinite_values(module, tensors)
