from __future__ import annotations

from typing import Literal

import pytest

from pera_lightning.data.option_errors import check_at_least_one, check_choice
from pera_lightning.errors import ConfigError


def test_a_choice_must_be_one_of_the_literal() -> None:
    choices = Literal["a", "b"]
    check_choice("option", "b", choices)
    with pytest.raises(ConfigError, match=r"option has[\s\S]*got: +'c'\s+expected: one of a, b"):
        check_choice("option", "c", choices)


def test_a_count_must_be_at_least_one_where_given() -> None:
    check_at_least_one("option", 1)
    check_at_least_one("option", None)
    with pytest.raises(ConfigError, match="option is too small"):
        check_at_least_one("option", 0)
    with pytest.raises(ConfigError, match=r"no whole number[\s\S]*got: +1\.5"):
        check_at_least_one("option", 1.5)  # type: ignore[arg-type]
