"""Fits on packed rows in two processes, under each strategy that shards the model.

Run as `python -m tests.support.packed_processes FOLDER`, where FOLDER holds `rows.jsonl` and the models `keeping` and
`mixing`; each process writes what came of each fit to FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from pera_lightning import InstructionDataModule, PeraCallback, PeraCausalLM
from pera_lightning.errors import ConfigError
from tests.support.fsdp import OnCPU
from tests.support.sharded import Losses, strategy
from tests.support.trainers import cpu_trainer

STRATEGIES: dict[str, Callable[[], Strategy | str]] = {
    "fsdp1": OnCPU,
    "fsdp2": lambda: strategy(2, 1),
    "tensor": lambda: strategy(1, 2),
    "ddp": lambda: "ddp",
}


def fit(folder: Path, name: str, model: str, how: dict[str, bool]) -> dict[str, Any]:
    """What came of two steps: their losses, or the refusal and the steps before it."""
    torch.manual_seed(0)
    module = PeraCausalLM(str(folder / model), learning_rate=1e-2)
    data = InstructionDataModule(train_files=str(folder / "rows.jsonl"), batch_size=2, **how)
    losses = Losses()
    options = {"strategy": STRATEGIES[name](), "max_steps": 2, "limit_val_batches": 0}
    trainer = cpu_trainer(folder / f"{name}-{model}", PeraCallback(2), losses, processes=2, **options)
    try:
        trainer.fit(module, data)
    except ConfigError as error:
        return {"refusal": str(error), "steps": module.global_step}
    return {"losses": list(losses.found.values())}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = {}
    for name in STRATEGIES:
        found[name] = {
            "padded": fit(folder, name, "keeping", {}),
            "packed": fit(folder, name, "keeping", {"padding_free": True}),
            "mixing": fit(folder, name, "mixing", {"padding_free": True}) if name != "tensor" else {},
        }
    torch.save(found, folder / f"{os.environ.get('LOCAL_RANK', 0)}.pt")
