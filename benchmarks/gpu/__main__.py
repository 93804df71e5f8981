"""PERA on this machine's GPU: time and memory of a step, decoding, the largest batch, and what `estimate` is worth.

    make bench-gpu
    python -m benchmarks.gpu --minutes 10
    python -m benchmarks.gpu --tiny              a trial of the program, also without a GPU
    python -m benchmarks.gpu report              only the page, from the results there

Writes a file under benchmarks/results/gpu after each row, and then docs/gpu.md with its picture. Rows that do not fit
the card, fail, or that the time does not reach say so there.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.console import Console

from benchmarks.gpu import card, measuring, plan, report, results
from benchmarks.gpu.session import Session

MINUTES = 3.5
"""Less than four with the imports."""
SECONDS_OF_ROUNDS = 3.0


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["run", "report"], default="run")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after these no row begins or goes on")
    parser.add_argument("--out", type=Path, help="folder of results and page, in place of the repository's")
    parser.add_argument("--tiny", action="store_true", help="tiny models; without --out the results go to runs/gpu")
    arguments = parser.parse_args(words)
    out = arguments.out or (card.ROOT / "runs" / "gpu" if arguments.tiny else None)
    folder = out or results.FOLDER
    console = Console()
    if arguments.what == "run":
        measure(folder, arguments.minutes, arguments.tiny, console)
    found = results.read(folder)
    if not found:
        sys.exit(
            f"There is nothing to write a page of.\n  got: no result in {folder}\n  expected: one at least\n"
            "  fix: python -m benchmarks.gpu"
        )
    report.write(found, out or card.ROOT / "docs")


def measure(folder: Path, minutes: float, is_tiny: bool, console: Console) -> Path:
    """Measure every row of the plan; returns the file of the results."""
    budget, device = measuring.Budget(60 * minutes), card.default_device()
    _check_device(device, is_tiny)
    _quiet()
    torch.manual_seed(0)
    header = {**card.described(device), "is_tiny": is_tiny, "minutes": minutes}
    path = results.new_path(folder, header)
    console.print(f"{header['card']}, kernels {header['kernels']}; results in {path}", highlight=False, soft_wrap=True)
    session = Session(device, is_tiny=is_tiny, seconds=0.0 if is_tiny else SECONDS_OF_ROUNDS)
    save = partial(results.write, path, header)
    for row in measuring.run(plan.rows(is_tiny), session, budget, save):
        told = row.get("reason") or report.summary(row)
        console.print(
            f"{row['part']} {row['name']}: {told} ({row['took_s']} s)", highlight=False, markup=False, soft_wrap=True
        )
    return path


def _check_device(device: torch.device, is_tiny: bool) -> None:
    if device.type != "cuda" and not is_tiny:
        sys.exit(
            "These are measurements of a GPU.\n  got: no GPU that torch can use\n"
            "  expected: one, and a torch built for it\n  fix: run it where there is one; "
            "--tiny tries the program on a CPU"
        )


def _quiet() -> None:
    """Of the libraries, about themselves."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
