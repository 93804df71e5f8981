"""Sentences with labels drawn at random: nothing to understand, only rows to learn by heart, which takes capacity."""

from __future__ import annotations

import random
from pathlib import Path

ROWS = 4000


def write_random_labels(data: Path, folder: Path) -> None:
    """Write train.tsv and dev.tsv of SST-2 with the same rows in both, so that "validation" asks what was learned.

    Args:
        data: Folder with glue/SST-2/train.tsv.
        folder: Where they go.
    """
    header, *lines = (data / "glue/SST-2/train.tsv").read_text(encoding="utf-8").splitlines()
    draw = random.Random(0)
    drawn = [f"{line.split(chr(9))[0]}\t{draw.randint(0, 1)}" for line in lines[:ROWS]]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join([header, *drawn]) + "\n", encoding="utf-8")
