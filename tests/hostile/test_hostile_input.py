"""Whatever is in a file: it is refused by an error of ours, or the model computes what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hostile.forge import CASES, Tally, Worker, tally, tried
from tests.hostile.outcomes import CLEAN, GOOD, RIGHT
from tests.hostile.readers.registry import KINDS

IN_THE_SUITE = {
    "adapter config": 60,
    "adapter weights": 60,
    "checkpoint": 50,
    "sharded checkpoint": 20,
    "LoRA folder": 50,
    "GGUF file": 40,
    "chat template": 15,
    "rows of data": 20,
    "base config": 25,
}
VARIANTS = 5
"""How many good inputs are tried of a kind."""

pytestmark = pytest.mark.timeout(0 if CASES else 600)


def count(kind: str) -> int:
    share = IN_THE_SUITE[kind] / sum(IN_THE_SUITE.values())
    return round(CASES * share) if CASES else IN_THE_SUITE[kind]


@pytest.mark.parametrize("kind", IN_THE_SUITE)
def test_good_input_is_accepted_by_every_reader(worker: Worker, kind: str) -> None:
    for answer in tried(worker, kind, 0, range(-VARIANTS, 0)):
        variant = answer["mutation"].partition(":")[0]
        for read, outcome, words in answer["reads"]:
            assert outcome == (CLEAN if (variant, read) in KINDS[kind].refused else RIGHT), (variant, read, words)


@pytest.mark.parametrize("kind", IN_THE_SUITE)
def test_mutated_input(worker: Worker, kind: str, report: Callable[[str, Tally], None]) -> None:
    report(kind, tally(worker, kind, count(kind), GOOD))
