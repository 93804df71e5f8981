"""What is trained for a row of the tables: a recipe of `configs/paper` and what the row changes in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.paper.tables import GLUE_SEEDS, GLUE_TASKS, TABLE_6, TABLE_8
from pera_lightning.cli.compare.comparison_methods import METHODS
from pera_lightning.cli.compare.comparison_plan import Plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "paper"
LAYERS = {"Q": "q_proj", "K": "k_proj", "V": "v_proj", "U": "up_proj", "D": "down_proj"}
"""Letters of the paper -> names of the layers."""
GLUE_METRICS = {"cola": "matthews", "stsb": "pearson"}
"""Of the other tasks it is the accuracy."""
LORA = "lora"
MEAN, TRAINING_MINUTES = "test_mean_accuracy", "test_training_minutes"
"""What the callbacks log; a task's own accuracy has its name after `test_`."""
# By their paths, as `fit` takes them.
_ANSWERS, _TIME = "benchmarks.paper.generated_answers.GeneratedAnswers", "benchmarks.paper.training_time.TrainingTime"


@dataclass(frozen=True)
class Setting:
    """A recipe, the same for all methods that are compared at it.

    Attributes:
        name: Its folder among the runs. Rows of several tables with one setting share its runs.
        model: Model as the command line names it.
        words: Configs and overrides, as `fit` takes them.
        learning_rate: Of every method.
        seeds: Those of the paper.
        selection: Metric that the checkpoint is chosen by.
        report: Metric that is reported.
        mode: Which is better of the metric to select by.
        rows: Where its data are in the folder with data, or None where the hub has them.
    """

    name: str
    model: str
    words: tuple[str, ...]
    learning_rate: float
    seeds: tuple[int, ...]
    selection: str
    report: str
    mode: Literal["min", "max"]
    glue_folder: str | None = None

    def plan(
        self,
        methods: Sequence[str],
        out: Path,
        *,
        seeds: Sequence[int] | None,
        data: Path | None,
        overrides: Sequence[str],
        workers: int,
    ) -> Plan:
        """The comparison of LoRA and other methods at this setting.

        Args:
            methods: Names of `compare`'s methods beside LoRA.
            out: Folder of all runs.
            seeds: Other seeds than the paper's.
            data: Folder with `glue/` and `commonsense/`; None takes GLUE from the hub, and the other from `data`.
            overrides: Further options of `fit`.
            workers: Runs at a time.
        """
        chosen = tuple(seeds or self.seeds)
        return Plan(
            words=(*self.words, *self._data(data), *overrides),
            methods={method: METHODS[method] for method in dict.fromkeys((LORA, *methods))},
            learning_rates=(self.learning_rate,),
            seeds=chosen,
            # Not the best by the first one: all seeds are run whatever it finds.
            tuning_seeds=len(chosen),
            selection=self.selection,
            report=self.report,
            mode=self.mode,
            out=out / self.name,
            workers=workers,
        )

    def _data(self, data: Path | None) -> tuple[str, ...]:
        if self.glue_folder is not None:
            return () if data is None else ("--data.init_args.folder", str(data / "glue" / self.glue_folder))
        folder = (data or Path("data")) / "commonsense"
        return (
            *("--data.init_args.train_file", str(folder / "commonsense_170k.json")),
            *("--data.init_args.test_folder", str(folder)),
            f"--trainer.callbacks+={_TIME}",
            # Last, so that overrides such as --trainer.callbacks.limit are this callback's.
            *(f"--trainer.callbacks+={_ANSWERS}", "--trainer.callbacks.tasks", str(folder)),
            *("--trainer.callbacks.num_beams", str(TABLE_6.beams)),
        )


def glue(model: str, column: str) -> Setting:
    """A task of GLUE as table 8 sets it.

    Args:
        model: A key of `TABLE_8`.
        column: A key of `GLUE_TASKS`.
    """
    task, size = GLUE_TASKS[column], model.removeprefix("roberta-")
    metric = GLUE_METRICS.get(task, "accuracy")
    configs = (CONFIGS / "glue" / f"roberta_{size}.yaml", CONFIGS / "glue" / "tasks" / f"{size}_{task}.yaml")
    return Setting(
        name=f"{model}/{task}",
        model=model,
        words=tuple(word for config in configs for word in ("--config", str(config))),
        learning_rate=TABLE_8[model][task].learning_rate,
        seeds=GLUE_SEEDS,
        selection=f"val_{metric}",
        report=f"test_{metric}",
        mode="max",
        glue_folder=column,
    )


def commonsense(model: str, *, rank: int = 16, layers: str = TABLE_6.layers, share: float = 1.0) -> Setting:
    """The commonsense mix as table 6 sets it.

    Args:
        model: A model of table 1.
        rank: Rank, and alpha.
        layers: Adapted layers by the paper's letters.
        share: Share of the training rows.
    """
    config = CONFIGS / "commonsense" / f"{model.replace('-', '_')}.yaml"
    name, words = f"{model}/rank_{rank}", ["--config", str(config), "--pera.rank", str(rank)]
    if layers != TABLE_6.layers:
        name += f"_{layers}"
        words += ["--pera.target_modules", f"[{', '.join(LAYERS[letter] for letter in re.findall('[A-Z]', layers))}]"]
    if share != 1:
        name += f"_share_{share}"
        words += ["--data.init_args.fraction", str(share)]
    return Setting(
        name=name,
        model=model,
        words=tuple(words),
        learning_rate=TABLE_6.learning_rate,
        seeds=(TABLE_6.seed,),
        selection="val_loss",
        report=MEAN,
        mode="min",
    )
