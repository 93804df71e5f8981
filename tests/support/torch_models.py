"""Small models of torch's own layers, with what is special about each for an adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

WIDTH = 64


class Attention(nn.Module):
    """`nn.MultiheadAttention` hands `out_proj.weight` to a function instead of calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Translator(nn.Module):
    """`nn.Transformer` over vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, 4, 1, 1, 128, batch_first=True)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(x, x.flip(1)))


class Recurrent(nn.Module):
    """Linear layers around an LSTM, whose own weights are no linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.lstm(self.embed(x))[0])))


class Shared(nn.Module):
    """One layer under two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.embed(x)))
        return self.head(self.second(torch.tanh(self.first(x))))


def encoder() -> nn.Module:
    """Its inference path reads the weights of `linear1`, `linear2` and `out_proj` in one fused kernel."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 4),
    )


def weight_normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(16, WIDTH)), nn.Tanh(), nn.Linear(WIDTH, 4))
