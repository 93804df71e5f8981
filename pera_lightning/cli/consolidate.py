"""`consolidate`: a Trainer's checkpoint as an adapter folder."""

from __future__ import annotations

from pera_lightning.cli.screen import show


def consolidate(checkpoint: str, out: str) -> None:
    """Write the adapter in a Trainer's checkpoint as a folder for load_adapter and `generate`.

    Needs neither the base model nor the processes that wrote the checkpoint.

    Args:
        checkpoint: A .ckpt file, or the folder of DeepSpeed or a strategy with save_distributed_checkpoint=True.
        out: Folder to write to; it is made if needed, and an adapter in it is replaced.
    """
    from pera_lightning.checkpoint.consolidate import consolidate as write

    show(write(checkpoint, out))
