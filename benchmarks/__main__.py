"""All benchmarks: prints tables, writes CSV files, `docs/cost.md` and its picture.

make bench
python -m benchmarks --only train_step decode --repeats 3
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from rich.progress import Progress

from benchmarks import decode, layers, operations, report, train_step
from benchmarks.bars import Rows

FOLDER = Path(__file__).parent
Job = Callable[[], dict[str, Any]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of alternating runs behind each ratio")
    parser.add_argument("--only", nargs="+", choices=list(jobs(1)), help="some of the benchmarks")
    arguments = parser.parse_args()
    # Of transformers, about its own names, and of the compiler, about a CPU.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.manual_seed(0)
    console = Console()
    console.print(header(), highlight=False)
    chosen = {name: work for name, work in jobs(arguments.repeats).items() if name in (arguments.only or jobs(1))}
    results: Rows = {}
    with Progress(console=console) as progress:
        for name, work in chosen.items():
            results[name] = [job() for job in progress.track(work, description=name)]
            write_csv(results[name], FOLDER / "results" / f"{name}.csv")
    report.show(results, console)
    if arguments.only is None:
        report.write(results, header(), FOLDER.parent / "docs")


def jobs(repeats: int) -> dict[str, list[Job]]:
    """Per benchmark, the measurements that make its rows."""
    big, few = layers.LLAMA_8B["up_proj"], max(3, repeats // 3)
    layer = partial(partial, layers.measure)
    return {
        "train_step": [partial(train_step.measure, r, d, repeats) for d in (0.05, 0.0) for r in (4, 8, 16, 32)],
        "decode": [partial(decode.measure, rank, repeats) for rank in (8, 32)],
        "big_layer": [layer(big, rank, 2048, few) for rank in (16, 32)],
        "rank": [layer(layers.SMOL["q_proj"], rank, 256, 3 * repeats) for rank in (2, 4, 8, 16, 32, 64)],
        "order": [layer(layers.SMOL["q_proj"], 8, 256, 3 * repeats, order) for order in (1, 2, 3)],
        "tokens": [layer(layers.SMOL["q_proj"], 16, tokens, repeats) for tokens in (16, 64, 256, 1024, 8192)],
        "shape": [layer(shape, 16, 256, repeats) for shape in distinct(layers.SMOL, layers.LLAMA_8B)],
        "compile": [partial(train_step.compiled, 8, 0.05, few)],
        "operations": [partial(operations.measure, order, dropout) for dropout in (0.0, 0.05) for order in (1, 2, 3)],
    }


def distinct(*shapes: dict[str, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The layer shapes of the models."""
    for model in shapes:
        yield from model.values()


def header() -> str:
    """Machine and versions."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return f"{processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine()} with {os.cpu_count()} cores"


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """A CSV with the header as its first, commented line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {header()}\n")
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
