"""The warning of rows that a CPU unpacks wrongly."""

from __future__ import annotations

import warnings

import bitsandbytes as bnb
import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter, quantize_model
from pera_lightning.base_layers import narrow_rows
from tests.support.quantized import NF4


def test_the_probe_finds_what_the_stored_bits_say() -> None:
    """Against a reading of the bits that knows nothing of rows."""
    torch.manual_seed(0)
    for width in (32, 48, 64, 96, 128):
        weight = torch.randn(64, width)
        bits, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
        packed = bits.flatten()
        indices = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
        expected = torch.tensor(NF4)[indices] * state.absmax.repeat_interleave(64)
        found = bnb.functional.dequantize_4bit(bits, state).flatten()
        is_wrong = not torch.allclose(found, expected, atol=1e-5)
        assert narrow_rows.unpacks_wrongly(width, 64) == is_wrong
        assert not (is_wrong and width % 64 == 0)


@pytest.mark.parametrize("wrongly", [True, False])
def test_narrow_rows_are_warned_of_where_they_are_unpacked_wrongly(
    wrongly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow_rows, "unpacks_wrongly", lambda *_: wrongly)
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
    quantize_model(model, "nf4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject_adapter(model, PeraConfig(2))
    assert {"inputs (96)" in str(warning.message) for warning in caught} == ({True} if wrongly else set())
