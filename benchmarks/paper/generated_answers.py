"""Accuracies on the commonsense tasks by generated answers, measured in the test of a fit."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from benchmarks.paper.settings import MEAN
from pera_lightning.data.commonsense import task_files
from pera_lightning.evaluation import Evaluation, evaluate_commonsense


class GeneratedAnswers(Callback):
    """Logs in the test what the paper reports: accuracies of the answers that the model writes.

    `test_<task>` and `test_mean_accuracy`, from 0 to 1, and what answering took: `test_<task>_seconds`, and on a GPU
    `test_<task>_gb`, the peak of its memory. The adapter is not merged. Where the Trainer's `limit_test_batches` is a
    number of batches, each task has no more questions than they hold.

    Args:
        tasks: Folder with `<task>/test.json` for one or more of the tasks.
        limit: Most questions of a task.
        num_beams: Beams of the search.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Questions at a time.
    """

    def __init__(
        self, tasks: str, limit: int | None = None, num_beams: int = 4, max_new_tokens: int = 16, batch_size: int = 16
    ) -> None:
        self.tasks = Path(tasks)
        self.limit = limit
        self.batch_size = batch_size
        self.options = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracies = []
        for task, path in task_files(self.tasks).items():
            if path.is_file():
                accuracies.append(self._measure(task, path, trainer, pl_module))
        pl_module.log(MEAN, sum(accuracies) / len(accuracies))

    def _measure(self, task: str, path: Path, trainer: Any, module: Any) -> float:
        on_gpu = module.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(module.device)
        start = time.perf_counter()
        accuracy = self._answered(task, path, trainer, module).accuracy(task)
        module.log(f"test_{task}", accuracy)
        module.log(f"test_{task}_seconds", time.perf_counter() - start)
        if on_gpu:
            module.log(f"test_{task}_gb", torch.cuda.max_memory_allocated(module.device) / 1e9)
        return accuracy

    def _answered(self, task: str, path: Path, trainer: Any, module: Any) -> Evaluation:
        # A folder with this task alone: what it costs is asked of each.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / task).symlink_to(path.parent.resolve())
            return evaluate_commonsense(
                module.built_model(),
                module.tokenizer,
                folder,
                template=trainer.datamodule.template,
                limit=self._most(trainer),
                **self.options,
            )

    def _most(self, trainer: Any) -> int | None:
        limits = [self.limit] if self.limit is not None else []
        if isinstance(trainer.limit_test_batches, int):
            limits.append(trainer.limit_test_batches * self.batch_size)
        return min(limits, default=None)
