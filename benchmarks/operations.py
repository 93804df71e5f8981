"""Operations that one adapted layer starts in a training step: what decides the time where a GPU waits for its CPU.

python -m benchmarks.operations

Counted without a GPU: PERA on the meta device, which stands for a GPU with the kernels, and on a CPU, where plain
operations compute; LoRA of PEFT on a CPU, with its default, float32 factors under bfloat16 autocast (eight of its
operations are casts), and with torch's dropout as a GPU has it, in one operation. Views and bare allocations are not
counted, a kernel counts as one. What the frozen layer starts by itself is taken off; that the layer's input gets a
second gradient, which is added to the first, is the adapter's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning import PeraConfig, inject_adapter

RANKS = (4, 8, 16, 32)
TOKENS, IN, OUT = 128, 512, 1024
_FREE = frozenset(
    "view t transpose _unsafe_view reshape expand slice select unsqueeze squeeze detach alias permute as_strided "
    "unbind split split_with_sizes narrow empty empty_like new_empty empty_strided new_empty_strided lift_fresh".split()
)


class Operations(TorchDispatchMode):
    """Counts the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in _FREE
        return function(*args, **(kwargs or {}))


def measure(order: int, dropout: float) -> dict[str, Any]:
    """One row: forward and backward, with kernels at each rank, by plain operations at rank 8, and LoRA."""
    row: dict[str, Any] = {"order": order, "dropout": dropout, "lora": _text(_added("lora", 8, order, dropout, "cpu"))}
    for rank in RANKS:
        row[f"kernels rank {rank}"] = _text(_added("pera", rank, order, dropout, "meta"))
    return row | {"without kernels": _text(_added("pera", 8, order, dropout, "cpu"))}


def operations(order: int, rank: int, dropout: float) -> int:
    """What a layer with kernels starts, forward and backward together."""
    return sum(_added("pera", rank, order, dropout, "meta"))


def _text(counts: tuple[int, int]) -> str:
    return f"{sum(counts)} ({counts[0]} + {counts[1]})"


def _added(kind: str, rank: int, order: int, dropout: float, device: str) -> tuple[int, int]:
    """Forward and backward, less those of the frozen layer alone."""
    base = _counts(_layer("base", rank, order, dropout).to(device), device)
    both = _counts(_layer(kind, rank, order, dropout).to(device), device)
    return both[0] - base[0], both[1] - base[1]


def _layer(kind: str, rank: int, order: int, dropout: float) -> nn.Module:
    holder = nn.Sequential()
    holder.add_module("q_proj", nn.Linear(IN, OUT, bias=False, dtype=torch.bfloat16))
    holder.requires_grad_(False)
    if kind == "lora":
        config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=["q_proj"])
        return peft.get_peft_model(holder, config).base_model.model[0]
    if kind == "pera":
        inject_adapter(holder, PeraConfig(rank, order, dropout=dropout, target_modules=["q_proj"]))
    return holder[0]


def _counts(layer: nn.Module, device: str) -> tuple[int, int]:
    """Of a step under bfloat16 autocast, as it is on a GPU: the second one, when all constants are there."""
    layer.train()
    for _ in range(2):
        x = torch.randn(2, TOKENS // 2, IN, dtype=torch.bfloat16, device=device, requires_grad=True)
        grad = torch.ones(2, TOKENS // 2, OUT, dtype=torch.bfloat16, device=device)
        # torch knows no autocast on the meta device; all of it is bfloat16 there anyway.
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu")
        with _dropout_in_one(), Operations() as forward, autocast:
            y = layer(x)
        with Operations() as backward:
            y.backward(grad)
        for parameter in layer.parameters():
            parameter.grad = None
    return forward.count, backward.count


@contextmanager
def _dropout_in_one() -> Iterator[None]:
    plain = F.dropout

    def fused(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if training and p else x

    F.dropout = fused
    try:
        yield
    finally:
        F.dropout = plain


def main() -> None:
    """Print the table."""
    rows = [measure(order, dropout) for dropout in (0.0, 0.05) for order in (1, 2, 3)]
    table = Table(*rows[0], title="Operations per adapted layer and training step: sum (forward + backward)")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
