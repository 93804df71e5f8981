"""Which numbers an adapter may be made of, and how large they may be: refused before anything is built."""

from __future__ import annotations

from typing import Any

from pera_lightning.errors import ConfigError, shown
from pera_lightning.families import FAMILIES, Terms

MAX_RANK = 65_536
MAX_ORDER = 8
"""Highest degree; the number of monomials grows with its power."""
COLUMNS = 4096
"""So many expanded columns K any layer may have."""
COLUMNS_PER_FEATURE = 16
"""And so many times the smaller one of its sizes, which no rank of its weight change exceeds."""
LISTED = 1_048_576
"""Most monomials that are listed one by one."""
LEAST_SCALE, MOST_SCALE = 1e-9, 1e9
"""Of alpha and coefficient_scale."""
MAX_TOKEN = 2**31 - 1
"""Largest token id."""
MAX_NAME = 1000
"""Characters of a module's name."""


def is_whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_rank(rank: Any, name: str = "rank", fix: str = "use 8 for a start") -> None:
    """Raise ConfigError unless `rank` is a whole number from 1 to `MAX_RANK`."""
    if not is_whole(rank) or not 1 <= rank <= MAX_RANK:
        expected = f"a whole number from 1 to {MAX_RANK:,}"
        raise ConfigError(f"{name} cannot have this value.", got=shown(rank), expected=expected, fix=fix)


def check_order(order: Any) -> None:
    """Raise ConfigError unless `order` is a whole number from 1 to `MAX_ORDER`."""
    if not is_whole(order) or not 1 <= order <= MAX_ORDER:
        raise ConfigError(
            "order is the highest degree of the expansion.",
            got=shown(order),
            expected=f"a whole number from 1 to {MAX_ORDER}",
            fix="use 2 for PERA, 1 for plain LoRA",
        )


def check_terms(terms: object) -> None:
    """Raise ConfigError unless `terms` is the name of a family of monomials."""
    if not isinstance(terms, str) or terms not in FAMILIES:
        raise ConfigError(
            "terms says which monomials take part.",
            got=shown(terms),
            expected=" or ".join(repr(term) for term in FAMILIES),
            fix="use 'full' for the paper's main form",
        )


def check_dropout(dropout: Any) -> None:
    """Raise ConfigError unless `dropout` is a probability in [0, 1)."""
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ConfigError(
            "dropout is the probability of zeroing an input of the adapter.",
            got=shown(dropout),
            expected="a number in [0, 1)",
            fix="use 0.05, or 0 for none (1 would leave nothing to train)",
        )


def is_scale(value: Any) -> bool:
    """Whether it is a number that can scale an adapter: from `LEAST_SCALE` to `MOST_SCALE`."""
    return is_number(value) and LEAST_SCALE <= value <= MOST_SCALE


def check_alpha(name: str, alpha: object) -> None:
    """Raise ConfigError unless `alpha` is a number that can scale an adapter."""
    if not is_scale(alpha):
        raise ConfigError(
            f"{name} scales the adapter.",
            got=shown(alpha),
            expected=f"a number > 0, from {LEAST_SCALE:g} to {MOST_SCALE:g}, or None for alpha = rank",
            fix="leave alpha out for the paper's setting",
        )


def check_coefficient_scale(scale: object) -> None:
    """Raise ConfigError unless `scale` is "auto" or a number that can scale the coefficients."""
    if scale != "auto" and not is_scale(scale):
        raise ConfigError(
            "coefficient_scale multiplies the polynomial coefficients.",
            got=shown(scale),
            expected=f'a number > 0, from {LEAST_SCALE:g} to {MOST_SCALE:g}, or "auto"',
            fix="use 1.0 for the paper's form",
        )


def count_of_degree(rank: int, degree: int, terms: Terms) -> int:
    """Number of monomials of one degree >= 2, in closed form."""
    return FAMILIES[terms].count(rank, degree)


def column_count(rank: int, order: int, terms: Terms) -> int:
    """Number K of columns after the expansion, of numbers that were checked."""
    return rank + sum(count_of_degree(rank, degree, terms) for degree in range(2, order + 1))


def check_products(rank: int, order: int, terms: Terms) -> None:
    """Raise ConfigError if an order above 1 brings no product, which would be a plain LoRA."""
    if order == 1 or column_count(rank, order, terms) > rank:
        return
    # No product has more components than its degree.
    least = next((more for more in range(rank, order + 1) if column_count(more, order, terms) > more), None)
    if least is None:
        raise ConfigError(
            f"There are no {terms} terms up to order {order}.",
            got=f"order={order} with terms={terms!r}",
            expected="a higher order for these terms",
            fix="raise the order, or use terms='square'",
        )
    raise ConfigError(
        f"There are no {terms} terms at rank {rank}.",
        got=f"a rank of {rank} with terms={terms!r}",
        expected=f"rank >= {least} for these terms",
        fix="raise the rank, or use terms='square'",
    )


def most_columns(in_features: int, out_features: int) -> int:
    """The largest K of a layer."""
    return max(COLUMNS, COLUMNS_PER_FEATURE * min(in_features, out_features))


def check_columns(name: str, rank: int, order: int, terms: Terms, features: tuple[int, int]) -> None:
    """Raise ConfigError if a layer would get more expanded columns than `most_columns`.

    Args:
        name: Of the layer, for the message.
        rank: Of the layer.
        order: Highest degree.
        terms: Which monomials take part.
        features: Sizes of the layer, `(in, out)`.
    """
    columns, most = column_count(rank, order, terms), most_columns(*features)
    if columns > most:
        raise ConfigError(
            "The expansion has more columns than the layer can make use of.",
            got=f"K = {columns:,} of rank {rank:,}, order {order} and terms {terms!r} for {name} from {features[0]:,} "
            f"to {features[1]:,} features",
            expected=f"at most {most:,}: {COLUMNS_PER_FEATURE} times the smaller size, or {COLUMNS:,}",
            fix="lower the rank or the order, or use terms='square'",
        )
