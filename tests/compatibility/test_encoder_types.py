"""Every type of encoders of text, sound and images, and encoders with decoders through each step of the sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compatibility.steps import run_steps
from tests.support.model_types import KINDS, ModelType, model_types

# Of transformers' models, about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("entry", model_types(*(kind.name for kind in KINDS[1:-1])), ids=lambda entry: entry.name)
def test_each_type(entry: ModelType, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    def report(step: str, outcome: str) -> None:
        record_property("compatibility", (entry.name, step, outcome))

    run_steps(entry, tmp_path, report)
