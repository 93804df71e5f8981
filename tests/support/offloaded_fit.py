"""Fits of a PeraCausalLM, as a script: `python -m tests.support.offloaded_fit PROCESSES FOLDER`.

Every process writes the adapters of a fit with and of one without activation offloading to FOLDER/<rank>.pt, and how
many bytes a step moved. FOLDER holds the model in `model`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pera_lightning import PeraCallback
from pera_lightning.checkpoint import adapter_state_dict
from pera_lightning.models.activation_offloading import ActivationOffloading
from pera_lightning.models.causal_lm import PeraCausalLM
from tests.support.causal_fits import loader
from tests.support.models import tiny_llama
from tests.support.trainers import cpu_trainer

ROWS, LENGTH, WIDTH = 16, 256, 64
"""In float32 a layer's input takes a MiB, from which on it is moved."""


def wide_llama() -> Any:
    torch.manual_seed(1)
    return tiny_llama(hidden_size=WIDTH, intermediate_size=96, attention_dropout=0.3)


def full_batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def offloading_of(module: PeraCausalLM) -> list[ActivationOffloading]:
    """What moves the activations of a module's model."""
    owners = [getattr(hook, "__self__", None) for hook in module.built_model().base_model._forward_pre_hooks.values()]
    return [owner for owner in owners if isinstance(owner, ActivationOffloading)]


def fit(folder: Path, offloading: bool, processes: int = 1, **options: Any) -> dict[str, Any]:
    """The adapter after a fit of three steps, and the bytes that the last one moved."""
    torch.manual_seed(2)
    module = PeraCausalLM(str(folder / "model"), activation_offloading=offloading, learning_rate=1e-2, **options)
    callback = PeraCallback(rank=2, dropout=0.1)
    strategy = "ddp" if processes > 1 else "auto"
    trainer = cpu_trainer(
        folder, callback, processes=processes, strategy=strategy, max_epochs=1, enable_checkpointing=False
    )
    rank = trainer.global_rank
    trainer.fit(module, loader([full_batch(3 * rank + step) for step in range(3)]))
    moved = [each.moved for each in offloading_of(module)]
    return {"adapter": adapter_state_dict(module), "moved": moved, "rank": trainer.global_rank}


def main() -> None:
    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    found = [fit(folder, offloading, processes, gradient_checkpointing=True) for offloading in (False, True)]
    torch.save(found, folder / f"{found[0]['rank']}.pt")


if __name__ == "__main__":
    main()
