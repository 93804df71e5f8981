"""The other end of the worker: cases by seed and index, and their outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SEED = int(os.environ.get("PERA_HOSTILE_SEED", "0"))
CASES = int(os.environ.get("PERA_HOSTILE_CASES", "0"))
"""Mutated inputs of all kinds together, if they are to be others than in `make test`."""
KILLS = int(os.environ.get("PERA_HOSTILE_KILLS", "40"))
"""Kills at each place."""


@dataclass
class Tally:
    """Outcomes of one kind of input, or of kills at one place.

    Attributes:
        good: The outcomes that are as they should be.
        files: How many inputs or kills were tried.
        reads: How many times they were read, by outcome.
        failures: A few words about each that is not as it should be.
    """

    good: tuple[str, ...]
    files: int = 0
    reads: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        """Count a case."""
        self.files += 1
        for read, outcome, words in answer["reads"]:
            self.reads[outcome] += 1
            if outcome not in self.good:
                self.failures.append(_failure(answer, read, outcome, words))


def _failure(answer: dict[str, Any], read: str, outcome: str, words: str) -> str:
    command = f'python -m tests.hostile "{answer["kind"]}" {answer["seed"]} {answer["index"]}'
    return f"{outcome} ({read}): {words.strip()[:900]}\n    after {answer['mutation']}\n    {command}"


class Worker:
    """A process that tries cases one by one."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-W", "ignore", "-m", "tests.hostile.worker", str(folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)

    def run(self, kind: str, seed: int, index: int) -> dict[str, Any]:
        """One case."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, "seed": seed, "index": index}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended; its log is log.txt in its folder")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def tried(worker: Worker, kind: str, seed: int, indices: range) -> Iterator[dict[str, Any]]:
    """The cases of a kind, in order."""
    for index in indices:
        yield worker.run(kind, seed, index)


def tally(worker: Worker, kind: str, count: int, good: tuple[str, ...]) -> Tally:
    """The outcomes of as many cases of a kind, from the seed of this run."""
    found = Tally(good)
    for answer in tried(worker, kind, SEED, range(count)):
        found.add(answer)
    return found
