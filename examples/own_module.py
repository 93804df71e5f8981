"""PERA in a LightningModule of your own: one more callback, nothing else changes.

python examples/own_module.py
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pera_lightning import PeraCallback


class Denoiser(pl.LightningModule):
    """Stands for your module: any network, any training step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean squared error of the clean signal."""
        noisy, clean = batch
        loss = nn.functional.mse_loss(self.net(noisy), clean)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; frozen parameters get no gradient, so all may be passed."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def signals(count: int) -> TensorDataset:
    """Sine waves with noise, and without."""
    phase, frequency = torch.rand(count, 1) * 6.28, torch.rand(count, 1) * 3 + 1
    clean = torch.sin(phase + frequency * torch.linspace(0, 6.28, 32))
    return TensorDataset(clean + 0.3 * torch.randn_like(clean), clean)


def main() -> None:
    """Fit for a few epochs; the adapter ends up in a folder that the log names."""
    pl.seed_everything(0)
    loader = DataLoader(signals(512), batch_size=32, shuffle=True)
    trainer = pl.Trainer(max_epochs=5, callbacks=[PeraCallback(rank=4, order=2)], logger=False)
    trainer.fit(Denoiser(), loader)


if __name__ == "__main__":
    main()
