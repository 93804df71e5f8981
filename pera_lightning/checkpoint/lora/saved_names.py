"""Which modules PEFT has saved whole: all whose names end in what its config names, by letters, not by components."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""


def saved_modules(keys: Iterable[str], ends: Iterable[str]) -> list[str]:
    """The outermost modules that hold tensors and have one of the ends: `norm` stands for every `*norm`.

    Args:
        keys: Names of the tensors, without PEFT's prefix.
        ends: `modules_to_save`, which PEFT compares with names from its own outermost module on.
    """
    ends_so = _ends_in_any(ends)
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")
        owners = (".".join(parts[:count]) for count in range(1, len(parts)))
        owner = next((owner for owner in owners if ends_so(PREFIX + owner)), None)
        if owner is not None:
            found[owner] = None
    return list(found)


def _ends_in_any(ends: Iterable[str]) -> Callable[[str], bool]:
    """Looks a name up in a time that hardly depends on the number of ends."""
    # Backwards they are beginnings. Of those none begins another here, so that what a name begins with is right before
    # it in the alphabet.
    beginnings: list[str] = []
    for beginning in sorted({end[::-1] for end in ends}):
        if not beginnings or not beginning.startswith(beginnings[-1]):
            beginnings.append(beginning)

    def found(name: str) -> bool:
        backwards = name[::-1]
        place = bisect.bisect_right(beginnings, backwards)
        return place > 0 and backwards.startswith(beginnings[place - 1])

    return found
