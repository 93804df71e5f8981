"""The pages of examples/serve; their commands are parsed by tests/docs."""

from __future__ import annotations

import re

from pera_lightning.export.forms import VLLM_RANKS
from pera_lightning.functional import expanded_rank
from tests.conftest import ROOT


def test_ranks_of_vllm() -> None:
    text = (ROOT / "examples/serve/vllm.md").read_text(encoding="utf-8")
    ranks = re.search(r"\(rank (.*?)\)", text, flags=re.DOTALL)
    assert ranks is not None
    for rank, expanded, limit in re.findall(r"(\d+): (?:K = )?(\d+), (?:so )?(\d+)", ranks[1]):
        assert int(expanded) == expanded_rank(int(rank), 2)
        assert int(limit) == next(value for value in VLLM_RANKS if value >= int(expanded))
