"""A Trainer's checkpoint as an adapter folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pera_lightning.checkpoint.adapter_files import write_adapter
from pera_lightning.checkpoint.adapter_fit import check_alone
from pera_lightning.checkpoint.adapter_folder import check_adapter_place
from pera_lightning.checkpoint.adapter_mismatch import is_of_plain_model
from pera_lightning.checkpoint.adapter_tensors import check_tensors
from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.checkpoint.training.training_checkpoint import TrainingCheckpoint, read_checkpoint
from pera_lightning.errors import CheckpointError
from pera_lightning.functional import expanded_rank
from pera_lightning.option_checks import check_flags
from pera_lightning.storage.remote import place


def consolidate(checkpoint: str | Path, directory: str | Path, *, overwrite: bool = False) -> Path | str:
    """Write the adapter in a Trainer's checkpoint as a folder that `load_adapter` reads. Needs no model and no GPU.

    Args:
        checkpoint: A `.ckpt` file, or the folder that several processes wrote together
            (`save_distributed_checkpoint=True`, or DeepSpeed's stages 1 and 2).
        directory: Folder to write to, as `save_adapter` does: it is looked at first, and replaced when all has been
            read and checked.
        overwrite: Write into a folder with other things too, and replace what has the names of an adapter's files.

    Returns:
        The folder; of a URL, the URL.

    Raises:
        CheckpointError: There is no checkpoint, PeraCallback did not write it, or a part of the adapter is missing or
            lost (zeros where neither the start nor training leaves any).
        AdapterFileError: A value is not finite, or none that a model could compute with; or the tensors are not those
            that the checkpoint lists.
        FolderError: The folder is somebody else's, or cannot be written to; it is as it was.
    """
    check_flags(overwrite=overwrite)
    check_adapter_place(place(directory), None, overwrite=overwrite)
    held = read_checkpoint(checkpoint)
    if held.manifest is None:
        raise CheckpointError(
            "The checkpoint does not say what adapter it holds.",
            got=f"{checkpoint}, which looks like a checkpoint of the plain model"
            if is_of_plain_model(held.shapes)
            else f"{checkpoint} without the state of PeraCallback",
            expected="a checkpoint of a run with PeraCallback, and not of ModelCheckpoint(save_weights_only=True)",
            fix="take another checkpoint of a run with PeraCallback, or the adapter folder that it wrote at its end",
        )
    prefix = _prefix(held, held.manifest)
    tensors = {key.removeprefix(prefix): value for key, value in held.tensors().items() if key.startswith(prefix)}
    lost = list(_missing(tensors, held.manifest)) or list(_emptied(tensors, held.manifest))
    if lost:
        raise CheckpointError(
            "A part of the adapter is not in the checkpoint.",
            got=f"{checkpoint}: {len(lost)} tensors are missing or were lost in part, e.g. {lost[0]!r}",
            expected="all tensors of the adapter, with the values of every process",
            fix="copy the whole folder, the files of all processes; or take an earlier checkpoint",
        )
    check_alone(held.manifest, check_tensors(held.manifest, tensors, checkpoint), checkpoint)
    return write_adapter(directory, tensors, held.manifest, overwrite=overwrite)


def _prefix(held: TrainingCheckpoint, manifest: Manifest) -> str:
    """What stands in the LightningModule's names before those of the module that adapter files are relative to."""
    for state in held.callbacks.values():
        # Earlier versions did not write it.
        if isinstance(state, dict) and "adapter" in state and isinstance(state.get("prefix"), str):
            return str(state["prefix"])
    first = f"{next(iter(manifest.layers))}.pera_A"
    return next((key.removesuffix(first) for key in held.shapes if key == first or key.endswith(f".{first}")), "")


def _missing(tensors: Mapping[str, Tensor], manifest: Manifest) -> Iterator[str]:
    for name, plan in manifest.layers.items():
        terms = expanded_rank(plan.rank, manifest.config.order, manifest.config.terms) - plan.rank
        wanted = {"pera_A": (0, plan.rank), "pera_B": (1, plan.rank), **({"pera_h": (0, terms)} if terms else {})}
        for own, (axis, size) in wanted.items():
            tensor = tensors.get(f"{name}.{own}")
            if tensor is None or tensor.ndim != (1 if own == "pera_h" else 2) or tensor.shape[axis] != size:
                yield f"{name}.{own}"
    for name in (*manifest.saved, *(f"{name}.token_rows.delta" for name in manifest.tokens)):
        if not any(key == name or key.startswith(f"{name}.") for key in tensors):
            yield name


def _emptied(tensors: Mapping[str, Tensor], manifest: Manifest) -> Iterator[str]:
    """Factors that a process's part is missing from: zeros instead, which neither start nor training leave there."""
    for name in manifest.layers:
        rows = tensors[f"{name}.pera_A"].any(dim=1)
        # A linear layer starts with B = 0, an embedding with A = 0.
        if (rows.any() and not rows.all()) or (not rows.any() and not tensors[f"{name}.pera_B"].any()):
            yield f"{name}.pera_A"
