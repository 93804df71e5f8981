"""Whether a checkpoint fits the adapters of a run, found out before any process begins to load it."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from pera_lightning.callback.guards import refuse_other_form
from pera_lightning.checkpoint import Manifest, adapter_state_dict
from pera_lightning.checkpoint.adapter_mismatch import describe_mismatch, mismatch_cure, shapes
from pera_lightning.checkpoint.training.training_checkpoint import TrainingCheckpoint, read_checkpoint
from pera_lightning.errors import CheckpointError


def fitting_checkpoint(path: str | Path, pl_module: pl.LightningModule, present: Manifest) -> TrainingCheckpoint:
    """Look into a checkpoint that is about to be loaded past the module's own hooks.

    What does not fit is refused in every process before any of them begins to load: they would wait for each other.

    Args:
        path: The file or folder.
        pl_module: The module with its adapters.
        present: Of its adapter.

    Raises:
        CheckpointError: It holds another adapter, or none.
    """
    held = read_checkpoint(path)
    if held.manifest is not None:
        refuse_other_form(held.manifest, present)
    wanted = shapes(adapter_state_dict(pl_module))
    mismatch = describe_mismatch(held.shapes, wanted)
    if mismatch:
        raise CheckpointError(
            "The checkpoint does not fit the adapters of this run.",
            got=f"{path}: {mismatch}",
            expected="an adapter-only checkpoint of the same model, rank, order and targets",
            fix=mismatch_cure(held.shapes, wanted),
        )
    return held
