"""The adapter folder that a fit leaves behind."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from safetensors import SafetensorError
from torch import Tensor

from pera_lightning.checkpoint import Manifest, adapter_state_dict, write_adapter
from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.errors import AdapterFileError
from pera_lightning.functional.distributed import whole
from pera_lightning.injection import clean_name
from pera_lightning.injection.saved_modules import kept_infinities
from pera_lightning.integration.adapter_root import adapter_root, prefix_of
from pera_lightning.integration.best_checkpoint import best_checkpoint, tensors_of
from pera_lightning.integration.run_summary import run_summary


def adapter_folder(trainer: pl.Trainer, chosen: str | None) -> Path:
    """Where the adapter goes at the end of the fit; collective, as the Trainer's `log_dir` is."""
    return Path(chosen or Path(trainer.log_dir or trainer.default_root_dir) / "adapter")


def announce_replacement(trainer: pl.Trainer, chosen: str | None) -> None:
    """Say that the adapter of an earlier fit is in the place of this one's, while it can still be moved."""
    folder = adapter_folder(trainer, chosen)
    if (folder / CONFIG_FILE).is_file() and not getattr(trainer, "fast_dev_run", False):
        rank_zero_info(f"PERA: {folder} holds an adapter, which this fit's will replace at its end")


def write_trained_adapter(trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path, manifest: Manifest) -> None:
    """Write the adapter of the best checkpoint where a ModelCheckpoint monitors a metric, else the present one.

    The first process writes; all return when it is written.

    Args:
        trainer: The Trainer at the end of its fit.
        pl_module: The module with the adapters.
        folder: Where `load_adapter` is to find them.
        manifest: Of the adapter.

    Raises:
        AdapterFileError: The folder cannot be written.
    """
    # In every process, whatever is written in the end: sharded tensors come from all of them.
    present = {key: whole(value) for key, value in adapter_state_dict(adapter_root(pl_module)).items()}
    if trainer.is_global_zero:
        _write(trainer, pl_module, folder, present, manifest)
    trainer.strategy.barrier("PERA: adapter written")


def _write(
    trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path, present: dict[str, Tensor], manifest: Manifest
) -> None:
    root = adapter_root(pl_module)
    best, tensors = best_checkpoint(trainer), None
    if best is not None:
        tensors = tensors_of(best, clean_name(prefix_of(pl_module, root)), present)
    try:
        run = run_summary(trainer, None if tensors is None else best)
        chosen = present if tensors is None else tensors
        write_adapter(folder, chosen, manifest, run=run, constants=kept_infinities(root))
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
