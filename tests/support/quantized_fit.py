"""A fit over a quantised base in one process or several, as a script: `python -m tests.support.quantized_fit 2 FOLDER`.

Every process writes its factors to FOLDER/<rank>.pt.
"""

from __future__ import annotations

import sys
import warnings

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning import PeraCallback, quantize_model
from pera_lightning.checkpoint import adapter_state_dict
from tests.support.trainers import cpu_trainer


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        if self.net is None:
            # Here, so that the factors, which are made next, start alike in every process.
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
            quantize_model(self.net, "nf4-dq")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.3)

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
        # The same eight examples a step, in one process or spread over several.
        rank, size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(TensorDataset(x[rank::size], x[rank::size, :2]), batch_size=8 // size)


def main() -> None:
    devices, folder = int(sys.argv[1]), sys.argv[2]
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    trainer = cpu_trainer(
        folder,
        PeraCallback(rank=3),
        processes=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        use_distributed_sampler=False,
        enable_checkpointing=False,
    )
    module = Net()
    trainer.fit(module)
    torch.save(adapter_state_dict(module), f"{folder}/{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
