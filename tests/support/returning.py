"""Fits in processes that the Trainer spawns or forks: `python -m tests.support.returning STRATEGY BUILD_IN FOLDER`.

Writes what the main process holds after the fit, and what a test with it and a second fit find.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from pera_lightning import PeraCallback, adapter_state_dict, load_adapter, save_adapter
from tests.support.models import Regressor


def trainer_of(strategy: str, callback: pl.Callback, folder: Path) -> pl.Trainer:
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, callbacks=[callback], default_root_dir=folder,
        num_sanity_val_steps=0, enable_checkpointing=False, **options
    )  # fmt: skip


def main(strategy: str, build_in: str, folder: Path) -> None:
    module, callback = Regressor(build_in), PeraCallback(2, bias="adapted", modules_to_save=["net.3"])
    pl.seed_everything(0, verbose=False)
    trainer = trainer_of(strategy, callback, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module)
    found: dict[str, Any] = {"held": adapter_state_dict(module)}
    found["warned"] = any("no model to put" in str(warning.message) for warning in caught)
    found["val_loss"] = trainer.callback_metrics["val_loss"].item()
    found["tested"] = trainer.test(module, verbose=False)[0]["test_loss"]
    if found["held"]:
        save_adapter(module, folder / "by_hand")
    again = trainer_of(strategy, callback, folder / "again")
    again.fit(module)
    found["again"] = again.callback_metrics["val_loss"].item()
    fresh = Regressor()
    load_adapter(fresh, folder / "adapter")
    found["written"] = adapter_state_dict(fresh)
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
