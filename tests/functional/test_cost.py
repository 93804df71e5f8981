"""What the cost model chooses in the cases it exists for."""

from __future__ import annotations

import pytest

from pera_lightning.functional import expanded_rank
from pera_lightning.functional.cost import Sizes, backward_path, forward_path, keeps_middle


def sizes(tokens: int, n: int, m: int, rank: int, order: int = 2, on_cpu: bool = True) -> Sizes:
    return Sizes(tokens, n, m, rank, expanded_rank(rank, order), order, on_cpu)


def test_training_of_wide_layers_is_factored() -> None:
    assert forward_path(sizes(2048, 4096, 14336, 16)) == "factored"
    assert backward_path(sizes(2048, 4096, 14336, 16), middle_kept=True) == "factored"


def test_small_layers_with_many_tokens_are_dense() -> None:
    """The design's example: m = n = 576, K = 560, N = 4096."""
    assert forward_path(sizes(4096, 576, 576, 32)) == "dense"
    assert backward_path(sizes(4096, 576, 576, 32), middle_kept=False) == "dense"


def test_decoding_of_a_large_rank_is_implicit_on_a_cpu() -> None:
    assert forward_path(sizes(1, 4096, 14336, 32), prepared=True) == "implicit"
    # A GPU would wait for the many small operations.
    assert forward_path(sizes(1, 4096, 14336, 32, on_cpu=False), prepared=True) == "factored"


def test_decoding_of_a_small_rank_takes_the_kept_factors() -> None:
    assert forward_path(sizes(1, 576, 1536, 8), prepared=True) == "factored"


def test_a_weight_smaller_than_the_factors_is_kept_instead_of_them() -> None:
    assert forward_path(sizes(1, 576, 192, 32), prepared=True) == "dense"
    # Making it for one call would not pay.
    assert forward_path(sizes(1, 576, 192, 32)) != "dense"


@pytest.mark.parametrize("tokens", [1, 256, 100_000])
def test_lora_has_one_way(tokens: int) -> None:
    assert forward_path(sizes(tokens, 64, 64, 8, order=1), prepared=True) == "factored"


def test_the_middle_is_kept_in_wide_layers_of_moderate_rank() -> None:
    assert keeps_middle(sizes(256, 4096, 4096, 16))
    assert keeps_middle(sizes(256, 1536, 576, 16))
    assert not keeps_middle(sizes(256, 576, 576, 8))
    assert not keeps_middle(sizes(256, 1536, 576, 32))
