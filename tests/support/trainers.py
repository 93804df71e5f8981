"""A Trainer on the CPU that writes nothing but what a test asks for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

# Lightning 2.5 has no such option, and unpickles what it loads.
SAFE_LOADING: dict[str, Any] = (
    {"weights_only": True} if "weights_only" in inspect.signature(pl.Trainer.fit).parameters else {}
)


def cpu_trainer(folder: Path | str, *callbacks: pl.Callback, processes: int = 1, **options: Any) -> pl.Trainer:
    """A Trainer of two epochs, no logger, no progress bar, no summary; several processes are forked and use DDP."""
    quiet = {
        "accelerator": "cpu",
        "devices": processes,
        "strategy": "ddp_fork" if processes > 1 else "auto",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})
