"""Cases and kills in words: `python -m tests.hostile KIND SEED INDEX [COUNT]`.

KIND may be `all`; without words the kinds, places and meetings are listed. One case alone is told whole, of several the
failures.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hostile.forge import Worker, tried
from tests.hostile.kills.killing import FINE
from tests.hostile.kills.meetings import MEETINGS
from tests.hostile.kills.places import PLACES
from tests.hostile.outcomes import GOOD, RIGHT
from tests.hostile.readers.registry import KINDS


def show(worker: Worker, kind: str, seed: int, indices: range) -> None:
    """Try some cases of a kind."""
    good = GOOD if kind in KINDS else FINE
    total, seconds = Counter[str](), 0.0
    for answer in tried(worker, kind, seed, indices):
        seconds += answer["seconds"]
        total.update(outcome for _, outcome, _ in answer["reads"])
        whole = len(indices) == 1
        shown = [row for row in answer["reads"] if whole or row[1] not in good or (indices[0] < 0 and row[1] != RIGHT)]
        if shown:
            print(f"{answer['index']}: {answer['mutation'][:300]}", flush=True)
        for read, outcome, text in shown:
            print(f"    {read}: {outcome} {text}", flush=True)
    print(f"{kind}: {dict(total)} in {seconds:.1f} s", flush=True)


def main(words: list[str]) -> None:
    """Run what the words name."""
    if not words:
        print("\n".join([*KINDS, *PLACES, *MEETINGS]))
        return
    seed, first, count = int(words[1]), int(words[2]), int(words[3]) if words[3:] else 1
    folder = Path(tempfile.mkdtemp(prefix="pera-hostile-"))
    worker = Worker(folder)
    for kind in [*KINDS, *PLACES, *MEETINGS] if words[0] == "all" else words[0].split(", "):
        show(worker, kind, seed, range(first, first + count))
    worker.close()
    print(f"the last case is in {folder}")


main(sys.argv[1:])
