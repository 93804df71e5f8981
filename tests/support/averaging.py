"""Lightning's averages of weights, which its older versions do not have."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch import callbacks

from tests.conftest import OLD_LIGHTNING


def weight_average(**options: Any) -> pl.Callback:
    """A `WeightAveraging`."""
    return _make("WeightAveraging", options)


def exponential_average(**options: Any) -> pl.Callback:
    """An `EMAWeightAveraging`."""
    return _make("EMAWeightAveraging", options)


def _make(name: str, options: dict[str, Any]) -> pl.Callback:
    if not hasattr(callbacks, name):
        pytest.skip(OLD_LIGHTNING)
    return getattr(callbacks, name)(**options)
