"""How long an adapter of 100 MB takes to save and to load, beside another checkout of this project.

`python -m benchmarks.adapter_files OTHER_CHECKOUT` starts a process for each, lets them save and load in turn, so that
both see the same disk and the same neighbours, and prints medians and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent.parent
WIDTH, LAYERS, RANK = 2048, 50, 128
"""2 x 2048 x 128 numbers of four bytes a layer: 105 MB."""


class Process:
    """Saves and loads with the package of a checkout."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-W", "ignore", str(HERE / "benchmarks/adapter_files.py"), "--serve", str(folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder)

    def seconds(self, what: str) -> float:
        """How long it takes to "save" or to "load"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(folder: Path) -> None:
    import torch
    from torch import nn

    from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter

    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(LAYERS)])
    inject_adapter(model, PeraConfig(RANK, order=1))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("pera_B"):
                value.normal_(std=0.01)
    place = folder / "adapter"
    calls = {"save": lambda: save_adapter(model, place), "load": lambda: load_adapter(model, place)}
    for line in sys.stdin:
        started = time.perf_counter()
        calls[line.strip()]()
        print(json.dumps(time.perf_counter() - started), flush=True)


def compare(other: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for name, checkout in (("here", HERE), ("there", other)):
            (Path(folder) / name).mkdir()
            processes.append(Process(checkout, Path(folder) / name))
        for what in ("save", "load"):
            for process in processes:
                process.seconds(what)
            times = []
            for number in range(rounds):
                # Whoever comes first has the colder disk.
                order = processes[:: -1 if number % 2 else 1]
                found = {id(process): process.seconds(what) for process in order}
                times.append([found[id(process)] for process in processes])
            here, there = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(new / old for new, old in times)
            print(f"{what}: {here:.3f} s here, {there:.3f} s there, ratio {ratio:.2f} (medians of {rounds})")
        for process in processes:
            process.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout; with --serve the folder to work in")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.other)
    else:
        compare(options.other.resolve(), options.rounds)
