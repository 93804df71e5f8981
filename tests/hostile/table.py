"""What the tests found -> docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import outcomes
from tests.hostile.forge import CASES, KILLS, SEED
from tests.hostile.kills.killing import STATES
from tests.hostile.kills.meetings import MEETINGS
from tests.hostile.kills.places import PLACES
from tests.hostile.readers.registry import KINDS
from tests.hostile.worker import BASE_BYTES, CPU_SECONDS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
INTRODUCTION = f"""# Damaged and hostile input, and killed writers

Written by the tests in `tests/hostile/` when all of them have passed (`make reliability`): no number is filled in by
hand. `make test` runs a part of the same cases, with the same limits, and fails at the first one that is not as it
should be. Everything is on the CPU, on tiny models; a case is reproduced by its kind, seed and number:
`python -m tests.hostile "adapter config" 7 123`.

## Input

Good files are mutated: bits flipped, cut off, values replaced by others, by huge, negative or non-finite numbers, by
text, by lists nested deeply, keys left out, renamed, doubled and swapped, other dtypes and shapes, other encodings, a
folder, a pipe or a link in place of a file, archives with other members, pickles that would run something, templates
that loop. Each mutated file is read in several ways (loading, `AdapterSet`, exports, `inspect`, `consolidate`, `fit`,
`test`, `generate`, ...), in a process of its own. A read ends in one of these:

- **{outcomes.CLEAN}**: an error of the package says what is wrong, and the model is as it was, bit by bit;
- **{outcomes.RIGHT}**: the model computes, in finite numbers, what code that shares nothing with the package makes of
  the same file;
- **{outcomes.OTHER}**: an error that is not the package's;
- **{outcomes.HANG}**: more than {CPU_SECONDS} seconds of processor time, or waiting without end;
- **{outcomes.MEMORY}**: a peak of more than twice the model beside {BASE_BYTES >> 20} MB, or a request that failed;
- **{outcomes.WRONG}**: accepted, but outputs are not finite or not what the file says;
- **{outcomes.CHANGED}**: refused, but the model or the folder to write to was changed before;
- **{outcomes.RAN}**: code from the file made a file;
- **{outcomes.TOUCHED}**: the input itself or a file beside it was changed.
"""
KILLED = """
## Kills

A process is ended while it writes a new state where an old one (or nothing) is: with SIGKILL before one of the
calls of the system that change files, within a file, at any time; or the disk is full. Then the folder is read, written
again and read again. **old state** and **new state**: exactly one of the two is there, and computes what it should.
"""
MET = """
## Several processes

One process writes two states in turn while another one reads, five times; or two write at once, five times each. Every
read and every state that is found afterwards counts.
"""


@dataclass(frozen=True)
class Found:
    """What a test found.

    Attributes:
        files: How many mutated inputs, or kills.
        reads: Outcome -> how often.
        passed: Whether all was as it should be.
    """

    files: int
    reads: Mapping[str, int]
    passed: bool


def render(found: Mapping[str, Found]) -> str:
    """The whole page."""
    cases = sum(found[name].files for name in KINDS)
    reads = sum(sum(found[name].reads.values()) for name in KINDS)
    kills = sum(found[name].files for name in PLACES)
    return "\n".join(
        [
            INTRODUCTION,
            f"{cases} mutated inputs, {reads} reads (seed {SEED}, PERA_HOSTILE_CASES={CASES}):\n",
            *_table("kind", "inputs", KINDS, outcomes.OUTCOMES, found),
            KILLED,
            f"{kills} kills (seed {SEED}, PERA_HOSTILE_KILLS={KILLS}):\n",
            *_table("place", "kills", PLACES, STATES, found),
            MET,
            *_table("who meets", "times", MEETINGS, STATES, found),
            "",
        ]
    )


def _table(
    first: str, second: str, names: Mapping[str, object], columns: Sequence[str], found: Mapping[str, Found]
) -> list[str]:
    rows = [[name, found[name].files, *(found[name].reads.get(column, 0) for column in columns)] for name in names]
    head: list[list[object]] = [[first, second, *columns], ["---"] * (len(columns) + 2)]
    return [f"| {' | '.join(map(str, row))} |" for row in [*head, *rows]]


def write(found: Mapping[str, Found], page: Path) -> str | None:
    """Write the page if every test of it has passed; else say that it was not written."""
    names = [*KINDS, *PLACES, *MEETINGS]
    if not all(name in found and found[name].passed for name in names):
        return f"{page.name} was not written: not every test of the tables ran and passed"
    page.write_text(render(found), encoding="utf-8")
    return None
