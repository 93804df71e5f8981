"""Names that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def near(name: str, names: Iterable[str], *, most: int = 3) -> list[str]:
    """The names that are near a misspelt one, the nearest first; case makes no difference."""
    known = {other.lower(): other for other in names}
    return [known[found] for found in get_close_matches(name.lower(), known, n=most)]


def did_you_mean(names: Iterable[str], otherwise: str) -> str:
    """What to do about a misspelt name, as the `fix` of an error."""
    found = " or ".join(names)
    return f"did you mean {found}?" if found else otherwise


def near_paths(path: Path) -> list[str]:
    """What lies beside the first part of a path that is not there, under names near it."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    try:
        return [
            str(missing.parent / name)
            for name in near(missing.name, (other.name for other in missing.parent.iterdir()))
        ]
    except OSError:
        return []
