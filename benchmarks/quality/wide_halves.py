"""GLUE's tasks with fewer rows to train on and more to choose and to report by.

Halves of 218 rows choose a learning rate by chance: on SST-2 the validation loss of one half was the same at rates that
differed by four, where the other half's differed by a sixth.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path


def wide_halves(title: str, kept: int) -> Callable[[Path, Path], None]:
    """What writes a task so that its validation set has the rows that training is not given.

    Args:
        title: The task's folder under glue/.
        kept: Rows of its training file that stay there; the others join its dev.tsv.
    """

    def write(data: Path, folder: Path) -> None:
        files = {name: data / f"glue/{title}/{name}.tsv" for name in ("train", "dev")}
        header, *rows = files["train"].read_text(encoding="utf-8").splitlines()
        # Whatever order the file has.
        random.Random(0).shuffle(rows)
        dev = files["dev"].read_text(encoding="utf-8").splitlines()[1:]
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (("train", rows[:kept]), ("dev", [*rows[kept:], *dev])):
            (folder / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")

    return write
