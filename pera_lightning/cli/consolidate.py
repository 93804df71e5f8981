"""`consolidate`: a Trainer's checkpoint as an adapter folder."""

from __future__ import annotations

from pera_lightning.cli.screen import show


def consolidate(checkpoint: str, out: str, overwrite: bool = False) -> None:
    """Write the adapter in a Trainer's checkpoint as a folder for load_adapter and `generate`.

    Needs neither the base model nor the processes that wrote the checkpoint. Nothing that the checkpoint names is
    called: it may come from others.

    Args:
        checkpoint: A .ckpt file, or the folder of DeepSpeed or a strategy with save_distributed_checkpoint=True.
        out: Folder to write to; it is made if needed, and an adapter in it is replaced. Other folders are refused.
        overwrite: Write into a folder with other things too, and replace what has the names of an adapter's files. The
            folder then holds an adapter of ours: later calls replace that without this option.
    """
    from pera_lightning.checkpoint.training.consolidation import consolidate as write

    show(write(checkpoint, out, overwrite=overwrite))
