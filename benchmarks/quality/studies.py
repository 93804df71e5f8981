"""The comparisons of the study: each is one call of `python -m pera_lightning compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pera_lightning.cli.compare import METHODS
from pera_lightning.cli.comparison import Plan

RUNS = Path("runs/quality")


@dataclass(frozen=True)
class Study:
    """A task at a rank, and the methods that are compared on it.

    Attributes:
        name: Its name, and that of its files.
        task: The task as a reader knows it.
        about: Model, data and length of the training, for a reader.
        rank: Rank of all methods.
        config: The config of the fit.
        data: The option that names the data and the folder inside of the one given to the script.
        options: Overrides of the config.
        metric: What is selected by and reported.
        mode: Which is better.
        also: A further metric to report, at the same learning rates.
        learning_rates: Tried by every method.
        methods: Names of `compare`'s methods, or name -> options.
        seeds: Seeds at the best learning rate.
        tuning_seeds: How many of them try every learning rate.
    """

    name: str
    task: str
    about: str
    rank: int
    config: str
    data: tuple[str, str]
    options: str
    metric: str
    mode: Literal["min", "max"]
    also: str
    learning_rates: tuple[float, ...]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    tuning_seeds: int

    def plan(self, data: Path, workers: int, out: Path | None = None) -> Plan:
        """The comparison, on the data in a folder; its runs go to `out`, by default a folder under `RUNS`."""
        option, folder = self.data
        words = f"--config {self.config} --pera.rank {self.rank} {self.options}"
        return Plan(
            words=(*words.split(), f"--{option}", str(data / folder)),
            methods=self.methods,
            learning_rates=self.learning_rates,
            seeds=self.seeds,
            tuning_seeds=self.tuning_seeds,
            selection=f"val_{self.metric}",
            report=f"test_{self.metric}",
            mode=self.mode,
            out=RUNS / self.name if out is None else out,
            workers=workers,
        )


_FOLLOWING = "--trainer.callbacks+=benchmarks.quality.variants.FollowingScale --trainer.callbacks.of_both true"
FORMS = {
    **{name: METHODS[name] for name in ("lora", "full")},
    "normalised": f"{METHODS['full']} {_FOLLOWING}",
    "normalised_h10": f"{METHODS['full']} {_FOLLOWING} --model.init_args.h_lr_factor 10",
}
"""The methods of the study: LoRA, the paper's form, and forms that make the products larger (docs/RESEARCH.md)."""


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE, at a size that a CPU can do many times."""

    title: str
    metric: str
    rows: int
    epochs: int
    learning_rates: tuple[float, ...]


WHOLE = {
    "sst2": GlueTask("SST-2", "accuracy", 4000, 1, (1e-3, 3e-3)),
    "cola": GlueTask("CoLA", "matthews", 4000, 2, (2e-3, 4e-3)),
}
"""With adapters in every linear layer."""

UPPER = {
    "sst2": GlueTask("SST-2", "accuracy", 4000, 2, (3e-4, 1e-3, 3e-3)),
    "cola": GlueTask("CoLA", "matthews", 4000, 2, (3e-4, 1e-3, 3e-3)),
    "stsb": GlueTask("STS-B", "spearman", 3200, 2, (3e-4, 1e-3, 3e-3)),
    "mrpc": GlueTask("MRPC", "f1", 3200, 2, (3e-4, 1e-3, 3e-3)),
}
"""With adapters in the upper two layers of six, where a step costs less than half, and few parameters must do."""

_UPPER_OPTIONS = (
    r"--pera.exclude_modules .*layer\.[0-3]\..* "
    "--trainer.callbacks+=benchmarks.quality.frozen_layers.FrozenLayers --trainer.callbacks.count 4"
)


def glue(name: str, data: GlueTask, task: str, rank: int, *, upper: bool) -> Study:
    """A task of GLUE with MiniLM."""
    options = (
        f"--data.init_args.task {task} --data.init_args.max_train_rows {data.rows} --data.init_args.max_length 64 "
        "--data.init_args.batch_size 16 --data.init_args.group_by_length true --pera.dropout 0 "
        # The last weights count, and validation after training is enough.
        f"--trainer.max_epochs {data.epochs} --trainer.check_val_every_n_epoch {data.epochs + 1} "
        f"--trainer.callbacks null {_UPPER_OPTIONS if upper else ''}"
    )
    adapted = "the linear layers of the upper two of six layers" if upper else "every linear layer"
    return Study(
        name=name,
        task=data.title,
        about=f"MiniLM-L6, {adapted} adapted, {data.rows:,} training rows, batches of 16, {data.epochs} "
        f"epoch{'s' * (data.epochs > 1)}.",
        rank=rank,
        config="configs/glue_minilm_cpu.yaml",
        data=("data.init_args.folder", f"glue/{data.title}"),
        options=options,
        # Of halves of some hundred rows the loss says more than the share of right answers.
        metric="loss",
        mode="min",
        also=data.metric,
        learning_rates=data.learning_rates,
        methods={name: words for name, words in FORMS.items() if not upper or name != "normalised"},
        seeds=(0, 1, 2),
        tuning_seeds=1 if upper else 2,
    )


RANKS = 1, 2, 4, 8
STUDIES = {
    study.name: study
    for study in (
        *(glue(f"{task}_rank_2", data, task, 2, upper=False) for task, data in WHOLE.items()),
        *(
            glue(f"{task}_upper_rank_{rank}", data, task, rank, upper=True)
            for task, data in UPPER.items()
            for rank in RANKS
        ),
    )
}
