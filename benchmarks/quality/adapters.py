"""PERA beside the adapters that people use: LoRA, rsLoRA, DoRA and HiRA of PEFT, on the tasks of the other studies."""

from __future__ import annotations

import dataclasses

from benchmarks.quality.form_studies import device_ids
from benchmarks.quality.studies import UPPER, Study, glue, small_model
from benchmarks.quality.wide_halves import wide_halves
from pera_lightning.cli.compare.comparison_methods import METHODS

ADAPTERS = {name: METHODS[name] for name in ("lora", "peft_lora", "rslora", "dora", "hira", "full", "square")} | {
    "auto": METHODS["full_auto"]
}
"""The reference first: PERA of order 1, beside LoRA as PEFT has it."""
_WITHOUT_TWIN = {name: words for name, words in ADAPTERS.items() if name != "peft_lora"}
"""Where a run takes minutes."""
ADAPTER_STUDIES = "adapters_"
"""How the names of these studies begin."""
TRAINED_ROWS = 2400
"""Of the tasks of GLUE."""
FURTHER_RATES = 5
"""How far beyond the grid a method may look for its best learning rate: HiRA's is many times LoRA's."""


def beside_others(
    study: Study,
    learning_rates: tuple[float, ...],
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3),
    tuning_seeds: int = 1,
    methods: dict[str, str] = ADAPTERS,
) -> Study:
    """A study's task with the methods of PEFT, each at a learning rate that is not at an end of what it tried.

    Args:
        study: Of PERA's own forms.
        learning_rates: Where the search begins, each twice the one before.
        seeds: Seeds at the best learning rate.
        tuning_seeds: How many of them try every learning rate.
        methods: Those of `ADAPTERS`, or some of them.
    """
    return dataclasses.replace(
        study,
        name=f"{ADAPTER_STUDIES}{study.name}",
        task=f"{study.task}, adapters",
        learning_rates=learning_rates,
        methods=methods,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        extensions=FURTHER_RATES,
        # Of PERA's forms they say again what the studies of these say.
        is_closer_look=True,
    )


def _wide_glue(name: str, rank: int) -> Study:
    """A task of GLUE in one epoch over fewer rows, whose halves are as large as they can be."""
    task = dataclasses.replace(UPPER[name], rows=TRAINED_ROWS, epochs=1)
    study = glue(f"{name}_upper_rank_{rank}", task, name, rank, upper=True)
    return dataclasses.replace(
        study,
        about=f"{study.about} The rows that training is not given join the validation set.",
        data={"data.init_args.folder": f"wide_{name}"},
        write_data=wide_halves(task.title, TRAINED_ROWS),
    )


def adapter_studies() -> list[Study]:
    """All of them."""
    return [
        beside_others(small_model(2), (1e-2, 2e-2, 4e-2), seeds=(0, 1, 2, 3, 4), tuning_seeds=2),
        beside_others(_wide_glue("sst2", 2), (5e-4, 1e-3, 2e-3), seeds=(0, 1, 2)),
        beside_others(_wide_glue("stsb", 2), (2e-3, 4e-3, 8e-3), seeds=(0, 1, 2)),
        beside_others(device_ids(2), (5e-3, 1e-2), seeds=(0, 1), methods=_WITHOUT_TWIN),
    ]
