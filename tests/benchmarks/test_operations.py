"""How many operations an adapted layer starts on a GPU: exact, and no more than LoRA of PEFT."""

from __future__ import annotations

import pytest

from benchmarks.operations import _added, operations

LORA = {0.0: 18, 0.05: 20}
PERA = {(1, 0.0): 10, (1, 0.05): 14, (2, 0.0): 12, (2, 0.05): 16, (3, 0.0): 12, (3, 0.05): 16}


@pytest.mark.parametrize(("order", "dropout"), PERA)
@pytest.mark.parametrize("rank", [4, 8, 16, 32])
def test_with_kernels(order: int, dropout: float, rank: int) -> None:
    assert operations(order, rank, dropout) == PERA[order, dropout] < LORA[dropout]


@pytest.mark.peft
@pytest.mark.parametrize("dropout", LORA)
def test_of_lora(dropout: float) -> None:
    assert sum(_added("lora", 8, 1, dropout, "cpu")) == LORA[dropout]


@pytest.mark.parametrize(("order", "most"), [(1, 16), (2, 37)])
def test_by_plain_operations(order: int, most: int) -> None:
    """Where no kernel runs; 71 at order 2 before."""
    assert sum(_added("pera", 8, order, 0.0, "cpu")) <= most
