"""Places of a run that Lightning would take for local folders although URLs were meant."""

from __future__ import annotations

import os
from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import RemotePath, collapsed_url, place


def refuse_lost_urls(trainer: pl.Trainer) -> None:
    """Raise ConfigError for a URL that has become a local path: checkpoints would go to a folder named `s3:`."""
    for name, path in _places(trainer):
        url = collapsed_url(path)
        if url is not None:
            raise ConfigError(
                "A URL has become a local path.",
                got=f"{name} {str(path)!r}",
                expected="a URL as text, or for a local place its path",
                fix=f"{name}={place(url) if url.startswith(('file:', 'local:')) else url!s}, as a str: pathlib.Path "
                "takes slashes out of URLs, and ModelCheckpoint takes file:// for the name of a folder",
            )


def refuse_remote_shards(trainer: pl.Trainer, strategy: RunStrategy) -> None:
    """Raise ConfigError for checkpoints at a URL under strategies that make local folders of it."""
    remote = [
        callback.dirpath
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and isinstance(place(callback.dirpath or ""), RemotePath)
    ]
    if remote and not strategy.writes_to_urls:
        raise ConfigError(
            f"{type(trainer.strategy).__name__} writes its checkpoints to local files only.",
            got=f"checkpoints at {remote[0]}",
            expected="a local folder, the same for all processes",
            fix="give ModelCheckpoint a local dirpath and copy it afterwards; adapter_dir may be a URL",
        )


def _places(trainer: pl.Trainer) -> Iterator[tuple[str, str | os.PathLike[str]]]:
    yield "default_root_dir", trainer.default_root_dir
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            yield "dirpath", callback.dirpath
    for logger in trainer.loggers:
        # Of some loggers it is a property of an experiment that does not run yet.
        folder = vars(logger).get("_root_dir") or vars(logger).get("_save_dir")
        if isinstance(folder, str | os.PathLike):
            yield "save_dir", folder
