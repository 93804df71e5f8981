"""All studies by their names."""

from __future__ import annotations

import dataclasses

from benchmarks.quality.adapters import adapter_studies
from benchmarks.quality.form_studies import device_ids, form_studies
from benchmarks.quality.studies import (
    FURTHER,
    IDEAS,
    UPPER,
    UPPER_FORMS,
    WHOLE,
    commonsense,
    finer_rates,
    glue,
    random_labels,
    small_model,
)

RANKS = 1, 2, 4, 8
STUDIES = {
    study.name: study
    for study in (
        *(glue(f"{task}_rank_2", data, task, 2, upper=False) for task, data in WHOLE.items()),
        *(
            glue(f"{task}_upper_rank_{rank}", data, task, rank, upper=True, methods=UPPER_FORMS)
            for task, data in UPPER.items()
            for rank in RANKS
        ),
        finer_rates(),
        *map(small_model, RANKS),
        random_labels(1),
        *map(commonsense, RANKS),
        dataclasses.replace(
            glue("ideas_upper_rank_2", FURTHER, "stsb", 2, upper=True, methods=IDEAS), task="Further forms: STS-B"
        ),
        *adapter_studies(),
        *map(device_ids, RANKS),
        *form_studies(),
    )
}
