"""What is left of a folder that another one has taken the place of, and of writers that have died: it is removed.

What is there now is never replaced by it. Files of others that are nowhere else stay where they are, or come back if
nothing else can have taken their place.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pera_lightning.storage.folder_kind import COMMIT, FolderKind, as_object, owned
from pera_lightning.storage.held_folder import identity
from pera_lightning.storage.regular_file import read_regular
from pera_lightning.storage.temporaries import in_use, is_stale, is_temporary, remove, stale
from pera_lightning.visible_text import visible_logger

NEW = "new"
"""Within a temporary folder: what is to take the place of the target; afterwards what was there before."""
TOLD = "complete"
"""Within a temporary folder: a file that tells what the old state holds, since nothing else tells that afterwards."""
_LARGEST = 1 << 26
_ROUNDS = 3


def tell(outer: Path, target: Path, kind: FolderKind, links: Collection[str]) -> None:
    """Note, before `NEW` and the target change places, what is what.

    Args:
        outer: The temporary folder.
        target: The folder.
        kind: Its kind.
        links: Names of files of others, which are in both.
    """
    is_owned = owned(target, kind)
    told = {
        "new": identity(outer / NEW),
        "marker": [kind.marker, identity(outer / NEW / kind.marker)],
        "ours": [name for name in os.listdir(target) if is_owned(name) and not is_temporary(name)],
        "links": {name: identity(outer / NEW / name) for name in links},
    }
    # As a whole: half of it would say nothing of the old state.
    with in_use(TOLD) as name:
        (outer / name).write_text(json.dumps(told), encoding="utf-8")
        (outer / name).replace(outer / TOLD)


def clean_all(parent: Path, name: str, target: Path) -> None:
    """Remove what nobody uses any more of what was in a folder on its way to `name`."""
    for path in stale(parent, name):
        _clean(path, target, None)


def clean(outer: Path, target: Path, kind: FolderKind) -> None:
    """Remove the temporary folder of this writer with what it holds, but for files of others that came late."""
    _clean(outer, target, kind)


def _clean(outer: Path, target: Path, kind: FolderKind | None) -> None:
    # The new state is in its place, or the error that ended the writer on its way: what cannot be removed now is left
    # to the next one.
    with contextlib.suppress(OSError):
        told, old, kept = _told(outer), outer / NEW, []
        for _ in range(_ROUNDS):
            if told and identity(old) not in (None, told["new"]):
                kept = _retire(old, target, kind, told)
            if not told or identity(old) in (None, told["new"]):
                remove(outer)
            if not os.path.lexists(outer):
                return
        if kept:
            visible_logger(__name__).warning(
                "PERA: files that are not ours were written into %s while it was replaced; they are in %s", target, old
            )


def _told(outer: Path) -> dict[str, Any]:
    try:
        return as_object(read_regular(outer / TOLD, _LARGEST, follow=False))
    except FileNotFoundError:
        return {}


def _retire(old: Path, target: Path, kind: FolderKind | None, told: dict[str, Any]) -> list[str]:
    """Remove the old state, but for what is returned: files of others that have no other place."""
    marker, new_marker = told["marker"]
    is_ours = _what_is_ours(old, kind, told)
    # Else the folder there is another one by now.
    may_come_back = kind is not None or identity(target / marker) == new_marker
    kept = []
    # The marker last: it tells whose the others are.
    for name in sorted(os.listdir(old), key=lambda name: name == marker):
        link = told["links"].get(name)
        if name == marker and len(os.listdir(old)) > 1:
            continue
        if is_ours(name) or _is_copy(old / name, target / name, link):
            remove(old / name)
            continue
        if may_come_back:
            _bring_back(old / name, target / name, link if kind else None)
        if os.path.lexists(old / name):
            kept.append(name)
    with contextlib.suppress(OSError):
        old.rmdir()
    return kept


def _what_is_ours(old: Path, kind: FolderKind | None, told: dict[str, Any]) -> Callable[[str], bool]:
    # Another writer may have changed the old state since it was told of.
    is_owned = owned(old, kind) if kind else lambda _: False
    names = {*told["ours"], told["marker"][0], COMMIT}
    return lambda name: is_stale(name) if is_temporary(name) else name in names or is_owned(name)


def _is_copy(left: Path, present: Path, link: list[int] | None) -> bool:
    """Whether a file of others has been in the new state: the file there, or one that was changed or deleted since."""
    found, here = identity(left), identity(present)
    if found is None:
        return True
    return found == here or (link is not None and found[0] == link[0])


def _bring_back(left: Path, place: Path, link: list[int] | None) -> None:
    """Move a file of others to where it would be, had the folder stayed.

    Args:
        left: The file.
        place: Where it belongs.
        link: What is there if nobody has touched it since: an earlier version, of before the folders changed places.
    """
    with contextlib.suppress(OSError):
        if link is not None and identity(place) == link:
            left.replace(place)
        elif os.path.lexists(place):
            return
        elif stat.S_ISDIR(left.lstat().st_mode) or os.link not in os.supports_follow_symlinks:
            left.rename(place)
        else:
            # Unlike a rename, it replaces nothing.
            os.link(left, place, follow_symlinks=False)
            left.unlink()
