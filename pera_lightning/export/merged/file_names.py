"""From the names of a model to those in its files: the same, or with one prefix such as `model.` more or less."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileNames:
    """How the tensors of a model are called in its files.

    Attributes:
        keys: The names in the files.
        more: What these have before the model's name.
        less: What the model's name has before it, and these do not: the files are of its body alone.
    """

    keys: Container[str]
    more: str = ""
    less: str = ""

    @classmethod
    def of(cls, keys: Mapping[str, object], needed: Iterable[str], others: Iterable[str]) -> FileNames:
        """Find out by names of the model that are not in the files as they are.

        Args:
            keys: The names in the files.
            needed: Names of what the files have to hold. They decide, all of them.
            others: Names of what they may lack; these decide where all that is needed is there.
        """
        needed, others = list(needed), list(others)
        wanted = [name for name in needed if name not in keys] or [name for name in others if name not in keys]
        free = keys.keys() - {*needed, *others}
        found = [cls(keys, more=prefix) for prefix in _prefixes(keys)]
        found += [cls(keys, less=prefix) for prefix in _prefixes(wanted)]
        fitting = [names for names in found if wanted and all(names.key(name) in free for name in wanted)]
        return fitting[0] if len(fitting) == 1 else cls(keys)

    def key(self, name: str) -> str:
        """Where the files have a tensor of the model."""
        return name if name in self.keys else self.more + name.removeprefix(self.less)

    def name(self, key: str) -> str:
        """What the model calls a tensor of its files."""
        return self.less + key.removeprefix(self.more)


def _prefixes(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] + "." for name in names})
