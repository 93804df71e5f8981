"""What a comparison is to compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pera_lightning.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        words: `--config` and overrides, as `fit` takes them.
        methods: Name -> further overrides. The first one is the reference.
        learning_rates: Learning rates that every method tries.
        seeds: Seeds of the runs at the best learning rate.
        tuning_seeds: How many of them, from the first, try every learning rate; the best is chosen by these.
        selection: Name of the metric to select by, logged in validation.
        report: Name of the metric to report, logged in test.
        mode: Whether less or more of them is better.
        out: Folder of the comparison. Runs that it holds already are not made again.
        learning_rate_option: The option of `fit` that is the learning rate.
        workers: Runs made at a time: one in this process, or several in processes of their own.
        extensions: How many learning rates beyond the grid a method may try whose best one is at an end of it.
        overwrite: Whether `out` may be a folder with other files; those of the same names are then replaced.
    """

    words: tuple[str, ...]
    methods: dict[str, str]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tuning_seeds: int
    selection: str
    report: str
    mode: Literal["min", "max"]
    out: Path
    learning_rate_option: str = "model.init_args.learning_rate"
    workers: int = 1
    extensions: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, values in (("learning_rates", self.learning_rates), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"{name} are tried one after the other.",
                    got=str(list(values)),
                    expected="one or more, each once",
                    fix="leave out what is there twice",
                )
        if not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ConfigError(
                "A learning rate says how far a step goes.",
                got=str(list(self.learning_rates)),
                expected="numbers above 0",
                fix="leave out the others",
            )
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError(
                "Random numbers start from a seed.",
                got=str(list(self.seeds)),
                expected="whole numbers from 0 to 4294967295",
                fix="leave out the others",
            )
        if self.workers < 1:
            raise ConfigError(
                "workers says how many runs are made at a time.",
                got=self.workers,
                expected="a number of 1 or more",
                fix="leave it out: then it is 1",
            )
        if self.extensions < 0 or (self.extensions and len(self.learning_rates) < 2):
            raise ConfigError(
                "The grid of learning rates is extended by the step between its last two.",
                got=f"extend {self.extensions} of {len(self.learning_rates)} learning rates",
                expected="0 or more, and two learning rates or more",
                fix="give further learning rates, or leave extend out",
            )
        if not 1 <= self.tuning_seeds <= len(self.seeds):
            raise ConfigError(
                "tuning_seeds says how many of the seeds try every learning rate.",
                got=f"{self.tuning_seeds} of {len(self.seeds)} seeds",
                expected=f"a number from 1 to {len(self.seeds)}",
                fix="leave it out: then all of them do",
            )

    @property
    def tuning(self) -> tuple[int, ...]:
        """The seeds that the learning rate is chosen by."""
        return self.seeds[: self.tuning_seeds]
