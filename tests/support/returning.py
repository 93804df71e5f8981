"""Fits in processes that the Trainer spawns or forks: `python -m tests.support.returning FOLDER`.

Writes what the main process holds after the fit, and what a test and a second fit find there.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from pera_lightning import PeraCallback, adapter_state_dict, load_adapter
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


def make_trainer(strategy: str, callback: pl.Callback, folder: Path) -> pl.Trainer:
    options: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_checkpointing": False}
    return cpu_trainer(folder, callback, processes=2, strategy=strategy, **options)


def fit(strategy: str, build_in: str, folder: Path, *, again: bool = True) -> dict[str, Any]:
    """What comes back from a fit, a test of the same module, and a second fit."""
    module, callback = Regressor(build_in), PeraCallback(2, bias="adapted", modules_to_save=["net.3"])
    torch.manual_seed(0)
    trainer = make_trainer(strategy, callback, folder)
    random = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module)
    same_random = torch.equal(random, torch.get_rng_state())
    written = Regressor()
    load_adapter(written, folder / "adapter")
    found = {
        "held": {name: value.clone() for name, value in adapter_state_dict(module).items()},
        "written": adapter_state_dict(written),
        "same_random": same_random,
        "warned": any("has no model to put the trained adapter into" in str(warning.message) for warning in caught),
        "val_loss": trainer.callback_metrics["val_loss"].item(),
    }
    if again:
        found["tested"] = trainer.test(module, verbose=False)[0]["test_loss"]
        trainer = make_trainer(strategy, callback, folder / "again")
        trainer.fit(module)
        found["again"] = trainer.callback_metrics["val_loss"].item()
    return found


def main(folder: Path) -> None:
    builds = ("__init__", "setup", "configure_model")
    found = {f"ddp_fork {build}": fit("ddp_fork", build, folder / build) for build in builds}
    found["ddp_notebook"] = fit("ddp_notebook", "configure_model", folder / "notebook", again=False)
    found["ddp_spawn"] = fit("ddp_spawn", "configure_model", folder / "spawn", again=False)
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    main(Path(sys.argv[1]))
