"""`estimate` against the measured peak of a step, with rows as long as they may be."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import estimated_memory
from benchmarks.gpu.session import Session, SkippedError

CONFIGS = ["configs/qpera_8gb_llama_3.2_1b.yaml", "configs/qpera_16gb_llama_3_8b.yaml"]


@pytest.mark.filterwarnings("ignore:There is no CUDA device to page from:UserWarning")
@pytest.mark.parametrize("config", CONFIGS)
def test_within_a_tenth(device: torch.device, config: str) -> None:
    session = Session(device, is_tiny=device.type != "cuda", seconds=0)
    try:
        found = estimated_memory.measure(session, {"config": config})
    except (SkippedError, torch.OutOfMemoryError) as refusal:
        pytest.skip(str(refusal))
    assert found["measured_over_estimated"] == pytest.approx(1, abs=0.1), found
