"""The CSV log of a fit that goes on from a checkpoint: the rows up to its step stay."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.storage.remote import Place, place

METRICS_FILE = "metrics.csv"


class ContinuedLog(pl.Callback):
    """Puts the earlier rows before those of a resumed fit, where Lightning has deleted them.

    Rows after the checkpoint are of the part that is lost and done again.

    Args:
        earlier: What the files held before the run was set up.
    """

    def __init__(self, earlier: Mapping[Place, bytes]) -> None:
        self._earlier = earlier

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not trainer.ckpt_path:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                path = place(logger.log_dir) / METRICS_FILE
                rows = list(_rows_before(trainer.global_step, self._earlier.get(path, b"")))
                # Not written yet: the logger does so with its own next rows.
                logger.experiment.metrics[:0] = rows
                if rows:
                    rank_zero_info(f"{path} goes on: its rows before step {trainer.global_step:,} stay")


def _rows_before(step: int, metrics: bytes) -> Iterator[dict[str, str]]:
    for row in csv.DictReader(metrics.decode("utf-8", "replace").splitlines()):
        number = row.get("step") or ""
        if number.isdecimal() and int(number) < step:
            yield {name: value for name, value in row.items() if name and value}
