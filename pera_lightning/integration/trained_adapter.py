"""The adapter folder that a fit leaves behind."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from safetensors import SafetensorError

from pera_lightning.checkpoint import adapter_state_dict, manifest_of, write_adapter
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection import clean_name
from pera_lightning.integration.adapter_root import adapter_root, prefix_of
from pera_lightning.integration.best_checkpoint import best_checkpoint, tensors_of


def write_trained_adapter(trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
    """Write the adapter of the best checkpoint where a ModelCheckpoint monitors a metric, else the present one.

    The first process writes and the others wait for it, so that each may read the folder after the fit.

    Args:
        trainer: The Trainer at the end of its fit.
        pl_module: The module with the adapters.
        folder: Where `load_adapter` is to find them.
    """
    _write(trainer, pl_module, folder)
    trainer.strategy.barrier("PERA: adapter written")


@rank_zero_only
def _write(trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
    root = adapter_root(pl_module)
    manifest = manifest_of(root, getattr(pl_module, "base_model_name", None))
    best, tensors = best_checkpoint(trainer), None
    if best is not None:
        tensors = tensors_of(best, clean_name(prefix_of(pl_module, root)), adapter_state_dict(root))
    try:
        write_adapter(folder, adapter_state_dict(root) if tensors is None else tensors, manifest)
    except (OSError, SafetensorError) as error:
        raise AdapterFileError(
            "The trained adapter cannot be written.",
            got=error,
            expected=f"a folder at {folder}",
            fix="make room or give the callback another adapter_dir; the checkpoints of this run hold the adapter too, "
            "and fit(ckpt_path=...) with more steps writes it again",
        ) from error
    source = "the last step" if best is None or tensors is None else best.name
    rank_zero_info(f"PERA: adapter of {source} written to {folder}")
