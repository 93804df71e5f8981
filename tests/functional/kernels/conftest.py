"""The kernels on tensors of a CPU, by Triton's interpreter."""

from __future__ import annotations

import pytest

from pera_lightning.functional import linear


@pytest.fixture
def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pera_linear` and adapted layers compute with kernels here too."""
    monkeypatch.setattr(linear, "_kernels_serve", lambda x, options: options.path != "implicit")
