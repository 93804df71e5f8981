"""The comparisons of the study: each is one call of `python -m pera_lightning compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.quality.random_labels import ROWS, write_random_labels
from benchmarks.quality.small_model import PRETRAINING_STEPS, write_small_model
from pera_lightning.cli.compare.comparison_methods import METHODS
from pera_lightning.cli.compare.comparison_plan import Plan

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
        data: Options that name data -> where it is in the folder given to the script.
        options: Overrides of the config.
        metric: What is selected by and reported.
        mode: Which is better.
        also: A further metric to report, at the same learning rates.
        learning_rates: Tried by every method.
        methods: Names of `compare`'s methods, or name -> options.
        seeds: Seeds at the best learning rate.
        tuning_seeds: How many of them try every learning rate.
        extensions: How many learning rates beyond the grid a method may try whose best one is at an end of it.
        write_data: Makes what is in no file: from the folder given to the script, into that which `data` names first,
            which then is one under `RUNS`.
        is_closer_look: Whether it looks at another study's question again, and so does not count beside that one.
    """

    name: str
    task: str
    about: str
    rank: int
    config: str
    data: dict[str, str]
    options: str
    metric: str
    mode: Literal["min", "max"]
    also: str
    learning_rates: tuple[float, ...]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    tuning_seeds: int
    extensions: int = 0
    write_data: Callable[[Path, Path], None] | None = None
    is_closer_look: bool = False

    @property
    def group(self) -> str:
        """What the studies that differ only in the rank share: the first part of their names."""
        return self.name.partition("_rank_")[0]

    def prepare(self, data: Path) -> None:
        """Write the data, where they have to be made."""
        if self.write_data is not None:
            [folder] = {Path(path).parts[0] for path in self.data.values()}
            self.write_data(data, RUNS / folder)

    def plan(self, data: Path, workers: int, out: Path | None = None) -> Plan:
        """The comparison, on the data in a folder; its runs go to `out`, by default a folder under `RUNS`."""
        root = data if self.write_data is None else RUNS
        places = [word for option, path in self.data.items() for word in (f"--{option}", str(root / path))]
        words = f"--config {self.config} --pera.rank {self.rank} {self.options}"
        return Plan(
            words=(*words.split(), *places),
            methods=self.methods,
            learning_rates=self.learning_rates,
            seeds=self.seeds,
            tuning_seeds=self.tuning_seeds,
            selection=f"val_{self.metric}",
            report=f"test_{self.metric}",
            mode=self.mode,
            out=RUNS / self.name if out is None else out,
            workers=workers,
            extensions=self.extensions,
        )


_VARIANT = "--trainer.callbacks+=benchmarks.quality.variants."
_FOLLOWING = f"{_VARIANT}FollowingScale --trainer.callbacks.of_both true"
_FAST_H = "--model.init_args.h_lr_factor 10"
FORMS = {
    **{name: METHODS[name] for name in ("lora", "full")},
    "normalised": f"{METHODS['full']} {_FOLLOWING}",
    "normalised_h10": f"{METHODS['full']} {_FOLLOWING} {_FAST_H}",
    "auto": METHODS["full_auto"],
    "auto_h3": f"{METHODS['full_auto']} --model.init_args.h_lr_factor 3",
}
"""The methods of the study: LoRA, the paper's form, and forms that make the products larger (docs/RESEARCH.md)."""
IDEAS = {
    "lora": METHODS["lora"],
    "order_3": METHODS["order_3"],
    "auto": FORMS["auto"],
    "natural": f"{METHODS['full']} {_VARIANT}NaturalScale --model.init_args.b_lr_factor 0.03",
    "square": f"{METHODS['square']} {_FOLLOWING} {_FAST_H}",
    "drawn": f"{METHODS['full']} {_FOLLOWING} {_VARIANT}DrawnCoefficients --trainer.callbacks.std 0.5",
    "penalised": f"{METHODS['full']} {_FOLLOWING} {_FAST_H} {_VARIANT}PenalisedCoefficients "
    "--trainer.callbacks.penalty 0.01",
}
"""Further forms of docs/RESEARCH.md; the last three have products as large as `normalised`."""
_WHOLE_FORMS = {name: words for name, words in FORMS.items() if not name.startswith("auto")}
UPPER_FORMS = {name: words for name, words in _WHOLE_FORMS.items() if name != "normalised"}
_SMALL_FORMS = {name: words for name, words in FORMS.items() if name != "normalised"}


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
    "cola": GlueTask("CoLA", "matthews", 4000, 2, (3e-4, 1e-3, 3e-3, 1e-2)),
    "stsb": GlueTask("STS-B", "spearman", 3200, 2, (1e-3, 3e-3, 1e-2)),
    "mrpc": GlueTask("MRPC", "f1", 3200, 2, (1e-3, 3e-3, 1e-2)),
}
"""With adapters in the upper two layers of six, where a step costs less than half, and few parameters must do."""

MORE_SEEDS = {"stsb_upper_rank_8": (0, 1, 2, 3, 4, 5)}
"""Where three seeds had shown a difference, and more were to say whether it is one."""

SMALL_STEPS = 300
"""Of the small language model."""

FURTHER = dataclasses.replace(UPPER["stsb"], learning_rates=(3e-3, 1e-2))
_UPPER_OPTIONS = (
    r"--pera.exclude_modules .*layer\.[0-3]\..* "
    "--trainer.callbacks+=benchmarks.quality.frozen_layers.FrozenLayers --trainer.callbacks.count 4"
)


def glue(
    name: str, data: GlueTask, task: str, rank: int, *, upper: bool, methods: dict[str, str] = _WHOLE_FORMS
) -> Study:
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
        data={"data.init_args.folder": f"glue/{data.title}"},
        options=options,
        # Of halves of some hundred rows the loss says more than the share of right answers.
        metric="loss",
        mode="min",
        also=data.metric,
        learning_rates=data.learning_rates,
        methods=methods,
        seeds=MORE_SEEDS.get(name, (0, 1, 2)),
        tuning_seeds=1 if upper else 2,
    )


def commonsense(rank: int) -> Study:
    """The commonsense mix with SmolLM2."""
    options = (
        "--data.init_args.fraction 0.1 --data.init_args.val_rows 400 --data.init_args.max_test_rows 50 "
        "--data.init_args.batch_size 8 --trainer.max_steps -1 --trainer.limit_val_batches 1.0 "
        "--trainer.check_val_every_n_epoch 2 --trainer.callbacks null "
        r"--pera.exclude_modules model\.model\.layers\.(1?\d|2[0-7]) "
        "--trainer.callbacks+=benchmarks.quality.frozen_layers.FrozenLayers --trainer.callbacks.count 28"
    )
    return Study(
        name=f"commonsense_upper_rank_{rank}",
        task="Commonsense",
        about="SmolLM2-135M-Instruct in bfloat16, float32 adapters in q, k, v, up and down of the upper two of thirty "
        "layers, 760 rows of the mix of eight tasks, batches of 8, 1 epoch; 400 rows to select by, 50 rows of every "
        "task to test. The loss is the mean over an answer's tokens.",
        rank=rank,
        config="configs/commonsense_smollm2_cpu.yaml",
        data={
            "data.init_args.train_file": "commonsense/train_sample.json",
            "data.init_args.test_folder": "commonsense",
        },
        options=options,
        metric="loss",
        mode="min",
        also="token_accuracy",
        learning_rates=(3e-3, 1e-2, 3e-2),
        methods=UPPER_FORMS,
        seeds=(0, 1, 2),
        tuning_seeds=1,
    )


def random_labels(rank: int) -> Study:
    """How much an adapter of a rank can learn by heart."""
    task = GlueTask("SST-2", "accuracy", ROWS, 8, (1e-3, 3e-3))
    study = glue(f"random_labels_upper_rank_{rank}", task, "sst2", rank, upper=True, methods=UPPER_FORMS)
    return dataclasses.replace(
        study,
        task="Random labels",
        about=f"MiniLM-L6, the linear layers of the upper two of six layers adapted, {ROWS:,} sentences of SST-2 with "
        "labels drawn at random, batches of 16, 8 epochs; the halves that select and report are of the same rows, so "
        "that the loss says how much was learned by heart.",
        data={"data.init_args.folder": "random_labels"},
        write_data=write_random_labels,
    )


def small_model(rank: int) -> Study:
    """Where the rank binds: all layers of a small model move to a text of another kind."""
    folder = "small_model"
    return Study(
        name=f"small_model_rank_{rank}",
        task="Small language model",
        about="A Llama of 3 layers, 128 wide (0.6M parameters), whose tokens are bytes, pretrained on WikiText-2 for "
        f"{PRETRAINING_STEPS} steps; every linear layer adapted, {SMALL_STEPS} steps of 16 blocks of 64 bytes of "
        "Shakespeare's plays.",
        rank=rank,
        config="configs/text_smollm2_cpu.yaml",
        data={
            "model.init_args.pretrained": f"{folder}/base",
            **{f"data.init_args.{split}_files": f"{folder}/{split}.txt" for split in ("train", "val", "test")},
        },
        options="--model.init_args.dtype auto --pera.target_modules all-linear --pera.exclude_modules [] "
        f"--data.init_args.block_length 64 --data.init_args.batch_size 16 --data.init_args.eval_batch_size 64 "
        f"--data.init_args.max_train_blocks {16 * SMALL_STEPS} --trainer.check_val_every_n_epoch 2 "
        "--trainer.callbacks null",
        metric="loss",
        mode="min",
        also="token_accuracy",
        # A factor of 1.5 from one to the next: the losses differ by less than they do between coarser ones.
        learning_rates=(1.5e-2, 2.2e-2, 3.3e-2, 5e-2, 7.5e-2) if rank < 4 else (5e-3, 7.5e-3, 1.1e-2, 1.6e-2, 2.4e-2),
        methods=_SMALL_FORMS,
        seeds=(0, 1, 2, 3),
        tuning_seeds=2,
        write_data=write_small_model,
    )


def finer_rates() -> Study:
    """Where `normalised_h10` was ahead on a grid of factors of three: whether LoRA is between its rates."""
    study = glue("stsb_rates_upper_rank_4", UPPER["stsb"], "stsb", 4, upper=True)
    return dataclasses.replace(
        study,
        task="STS-B, finer learning rates",
        learning_rates=(2e-3, 3e-3, 5e-3, 7e-3),
        methods={name: FORMS[name] for name in ("lora", "normalised_h10")},
        tuning_seeds=3,
        is_closer_look=True,
    )
