"""A run that ends before it has done anything leaves the files of the run before it as they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from pera_lightning.cli.fit.continued_log import METRICS_FILE, ContinuedLog
from pera_lightning.errors import PeraError
from pera_lightning.run_log.messages import rank_zero_warn
from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.remote import Place, RemotePath, place, uploaded

NAMES = (METRICS_FILE, "config.yaml", "hparams.yaml")
"""What Lightning deletes or replaces when a run is set up, before model, data and checkpoint have been looked at."""

_OF_START = ("config.yaml", "hparams.yaml", "events.out.tfevents.*")
"""What a run writes before its first step."""


@contextmanager
def earlier_files_kept(trainer: pl.Trainer) -> Iterator[None]:
    """Put back what setting a run up has deleted or replaced, unless the run did a step or evaluated a batch.

    A fit that goes on from a checkpoint keeps the rows of its CSV log.

    Args:
        trainer: Of the run, which starts within.
    """
    callbacks = cast(Any, trainer).callbacks
    earlier, new = _earlier(trainer), [folder for folder in _folders(trainer) if not folder.exists()]
    work, log = _Work(), ContinuedLog(earlier)
    callbacks[:0] = [work, log]
    try:
        yield
    except BaseException:
        if not work.begun:
            _remove_unused(new)
        raise
    finally:
        callbacks.remove(work)
        callbacks.remove(log)
        # Here, after Lightning's own end of a failed run: its loggers write once more then.
        if not work.begun:
            _put_back(earlier)


class _Work(pl.Callback):
    """Tells whether the run did a step or evaluated a batch, also in processes that the Trainer starts."""

    def __init__(self) -> None:
        self._done = torch.zeros((), dtype=torch.bool).share_memory_()

    @property
    def begun(self) -> bool:
        return bool(self._done)

    @override
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._done.fill_(True)

    on_test_batch_end = on_predict_batch_end = on_train_batch_end

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._done.fill_(True)


def _earlier(trainer: pl.Trainer) -> dict[Place, bytes]:
    """The files of earlier runs in the folders that this run logs to."""
    paths = [folder / name for folder in _folders(trainer) for name in NAMES]
    return {path: path.read_bytes() for path in paths if path.is_file()}


def _folders(trainer: pl.Trainer) -> list[Place]:
    """Where the first process logs to."""
    if not trainer.is_global_zero or not trainer.loggers:
        return []
    named = [trainer.log_dir, *(logger.log_dir for logger in trainer.loggers if isinstance(logger, CSVLogger))]
    return list(dict.fromkeys(place(folder) for folder in named if folder is not None))


def _remove_unused(folders: list[Place]) -> None:
    """Remove folders that a run has made and written nothing into but what every run begins with."""
    for folder in folders:
        if isinstance(folder, Path) and folder.is_dir():
            held = list(folder.iterdir())
            if all(path.is_file() and any(path.match(name) for name in _OF_START) for path in held):
                shutil.rmtree(folder)


def _put_back(earlier: dict[Place, bytes]) -> None:
    for path, content in earlier.items():
        try:
            if not path.is_file() or path.read_bytes() != content:
                _write(path, content)
        except PeraError as error:
            # What ended the run is what the user has to know first.
            rank_zero_warn(f"{path} of an earlier run is lost.", error)


def _write(path: Place, content: bytes) -> None:
    if isinstance(path, RemotePath):
        with uploaded(path.parent) as folder:
            (folder / path.name).write_bytes(content)
    else:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
