"""Ways to compute that a fault may depend on."""

from __future__ import annotations

import pytest

from pera_lightning.functional import linear


@pytest.fixture(params=["plain operations", "kernels"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters by plain operations, and with kernels in Triton's interpreter."""
    if request.param == "kernels":
        monkeypatch.setattr(linear, "_kernels_serve", lambda x, options: options.path != "implicit")
