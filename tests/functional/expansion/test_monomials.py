from __future__ import annotations

import pytest
import torch

from pera_lightning.errors import ConfigError
from pera_lightning.functional import expanded_rank, monomials
from tests.support.reference import reference_monomials


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("terms", ["full", "square", "cross"])
def test_agrees_with_the_definition(rank: int, order: int, terms: str) -> None:
    found = monomials(rank, order, terms)
    assert found == reference_monomials(rank, order, terms)
    assert expanded_rank(rank, order, terms) == rank + len(found)


def test_order_two_is_the_order_of_triu_indices() -> None:
    assert monomials(4) == [tuple(pair) for pair in torch.triu_indices(4, 4).T.tolist()]


@pytest.mark.parametrize(("rank", "full", "square"), [(4, 14, 8), (8, 44, 16), (16, 152, 32), (32, 560, 64)])
def test_expanded_ranks_of_the_paper(rank: int, full: int, square: int) -> None:
    assert expanded_rank(rank) == full
    assert expanded_rank(rank, terms="square") == square


@pytest.mark.parametrize("arguments", [(0,), (-1,), (1.5,), (True,), (2, 0), (2, 2, "cubes")])
@pytest.mark.parametrize("function", [monomials, expanded_rank])
def test_wrong_arguments(function: object, arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        function(*arguments)
