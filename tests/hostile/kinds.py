"""What a kind of hostile input consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


@dataclass
class Case:
    """A mutated copy of something good, and what it was made of.

    Attributes:
        given: Folder with the mutated files.
        good: The same folder before.
        out: Folder to write to; there is nothing in it.
        variant: Name of what was mutated, among those of the kind.
        random: For the choices of the readers.
        canary: A file that only code from the input could make.
        notes: What a mutation has to tell the readers.
    """

    given: Path
    good: Path
    out: Path
    variant: str
    random: Random
    canary: Path
    notes: dict[str, object] = field(default_factory=dict)


Read = Callable[[Case], None]
"""Reads the mutated files in one of the ways there are; raises what that raises, `Wrong` or `Changed`."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: As the table says it.
        prepare: Writes good input: a folder for each variant, into the folder that it is given.
        mutate: Damages the files in `case.given`; returns what it did, in words.
        reads: Every way of reading it, by name.
        per_case: How many of them, drawn at random, read each mutated input; all by default.
        warm: What the process loads once, before it forks for each case.
        model_bytes: Size of the largest model that a reader holds.
        refused: Variants and readers that refuse them though they are good.
    """

    name: str
    prepare: Callable[[Path], None]
    mutate: Callable[[Case], str]
    reads: Mapping[str, Read]
    per_case: int | None = None
    warm: Callable[[], None] = lambda: None
    model_bytes: int = 1 << 20
    refused: frozenset[tuple[str, str]] = frozenset()
