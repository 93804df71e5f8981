"""A training process that waits in the middle of its second epoch for the signal that ends it.

Run as `python -m tests.support.endangered FOLDER`; prints "waiting" when it is there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.support.noisy import Noisy, train

# Batches 0 to 2 make an optimizer step: the signal comes between two.
OPTIONS: dict[str, Any] = {"accumulate_grad_batches": 3, "saving": {"save_top_k": 1, "save_last": True}}
OPTIONS["saving"]["every_n_train_steps"] = 1


class Endangered(Noisy):
    """Waits in batch 4 of epoch 1 until SIGTERM was received."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == (1, 4):
            print("waiting", flush=True)
            while not self.trainer.received_sigterm:
                time.sleep(0.01)
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Endangered(StatefulDataLoader), 1, **OPTIONS)
