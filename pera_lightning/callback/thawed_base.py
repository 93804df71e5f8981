"""The base of an adapted model stays frozen throughout a run."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from pera_lightning.errors import TrainingError
from pera_lightning.injection import adapter_parameters


class ThawedBaseCheck:
    """Looks, before every optimizer step, whether it would change a parameter of the base.

    A walk over a large model takes longer than the step itself. So only tensors with a gradient that no step had
    before are looked up in the model: in an ordinary run those of the first one.
    """

    def __init__(self) -> None:
        # By id; the tensors too, so that no other can take the id of one that is gone.
        self._known: dict[int, Tensor] = {}

    def check(self, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Raise TrainingError before the optimizer steps a parameter of the base."""
        stepped = (value for group in optimizer.param_groups for value in group["params"])
        new = {id(value): value for value in stepped if id(value) not in self._known and value.grad is not None}
        if not new:
            return
        adapter = {id(value) for value in adapter_parameters(pl_module)}
        thawed = [name for name, value in pl_module.named_parameters() if id(value) in new and id(value) not in adapter]
        if thawed:
            raise TrainingError(
                "A parameter of the frozen base is about to be trained; checkpoints would not hold it.",
                got=f"{len(thawed)} base parameters with gradients, e.g. {thawed[0]!r}",
                expected="gradients for the adapter and modules_to_save only",
                fix="do not set requires_grad on the base (toggle only parameters that are trainable), or name what is "
                "to be trained in modules_to_save",
            )
        # Of the adapter, or a strategy's own, which are in no module.
        self._known |= new

    def forget(self) -> None:
        """A later run may have another model."""
        self._known = {}
