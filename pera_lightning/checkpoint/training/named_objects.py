"""What a checkpoint names beside tensors and plain values, and whether a checkpoint may need that."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

_SAFE = {
    *(f"collections.{name}" for name in ("defaultdict", "deque", "ChainMap", "UserDict", "UserList", "UserString")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"builtins.{name}"
        for name in ("bytes", "dict", "frozenset", "list", "object", "range", "slice", "str", "tuple")
    ),
    *("argparse.Namespace", "decimal.Decimal", "fractions.Fraction", "types.SimpleNamespace", "uuid.UUID"),
    *("zoneinfo.ZoneInfo", "ipaddress.IPv4Address", "ipaddress.IPv6Address", "random.Random", "re._compile"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
}
"""Classes of Python, and functions that make nothing but values, which a checkpoint may well need."""
_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_REASON = re.compile(r"WeightsUnpickler error:\s*(.+?)(?:\. |\n|$)")


def unneeded(names: Iterable[str]) -> list[str]:
    """Those of some names that are no classes, as far as this process knows; nothing is imported.

    Of Python's own modules a few harmless classes are known. Of others it has to be a class that is loaded already, as
    those are which a run of one's own puts into its checkpoints.

    Args:
        names: As pickle has them, with a dot between module and name.
    """
    return [name for name in names if not _is_needed(name)]


def _is_needed(name: str) -> bool:
    module, _, own = name.rpartition(".")
    module, own = NAME_MAPPING.get((module, own), (IMPORT_MAPPING.get(module, module), own))
    if f"{module}.{own}" in _SAFE or _PATHS.fullmatch(f"{module}.{own}"):
        return True
    return module.partition(".")[0] not in sys.stdlib_module_names and isinstance(_loaded(name), type)


def _loaded(name: str) -> Any:
    """What a name stands for, in modules that are imported already; classes may be inside of others."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:end]))
        if found is None:
            continue
        for part in parts[end:]:
            # Not by getattr: modules and classes may compute what they are asked for.
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        return found
    return None


def reason_of_torch(error: BaseException) -> str:
    """Why torch refused a file, without its advice to let the file run what it likes.

    Args:
        error: As `torch.load` raised it.
    """
    text = str(error)
    found = _REASON.search(text)
    if found or "weights_only" in text:
        return found[1] if found else "not what torch.load(weights_only=True) reads"
    return " ".join(text.split()) or type(error).__name__
