"""An adapter folder in place of a checkpoint, to validate, test or predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl

from pera_lightning.callback.adapter_root import adapter_root, prefix_of
from pera_lightning.checkpoint.adapter_folder import read_both, refuse_damage
from pera_lightning.checkpoint.adapter_tensors import check_tensors
from pera_lightning.injection import clean_name
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place


def is_adapter_folder(path: Place) -> bool:
    """Whether a path on this machine is that of an adapter's folder."""
    return isinstance(path, Path) and (path / CONFIG_FILE).is_file()


def adapter_checkpoint(folder: Place, pl_module: pl.LightningModule, state_key: str) -> dict[str, Any]:
    """What the Trainer would find in a checkpoint with the adapter of a folder: no state of a fit, but all else.

    So the checks of checkpoints are those of folders too: of the adapter's form, its base and its values.

    Args:
        folder: Where the adapter is.
        pl_module: The module, with adapters in it.
        state_key: What the Trainer knows the state of PeraCallback by.

    Raises:
        AdapterFileError: A file is missing or damaged.
    """
    manifest, tensors, problem = read_both(folder)
    check_tensors(manifest, tensors, folder)
    refuse_damage(problem)
    prefix = clean_name(prefix_of(pl_module, adapter_root(pl_module)))
    return {
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": {prefix + name: value for name, value in tensors.items()},
        "callbacks": {state_key: {"adapter": manifest.to_dict(), "prefix": prefix}},
    }
