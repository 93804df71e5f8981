"""The generation task, and the further forms of the products on five tasks."""

from __future__ import annotations

import dataclasses

from benchmarks.quality.device_ids import FACTS, STATES, TEMPLATES, write_device_ids
from benchmarks.quality.studies import FORMS, SMALL_STEPS, UPPER, UPPER_FORMS, Study, glue, small_model
from pera_lightning.cli.compare.comparison_methods import METHODS

EPOCHS = 6
ROWS = FACTS * len(TEMPLATES["train"]) * len(STATES)
"""Of the generation task, in an epoch."""
SHORT_STEPS = 150
"""Of the small language model, half of what the other studies have, so that all forms could be measured in an hour."""
_FORM = "--trainer.callbacks+=benchmarks.quality.product_forms."
_FOLLOWING = "--trainer.callbacks+=benchmarks.quality.variants.FollowingScale --trainer.callbacks.of_both true"
_FAST_H = "--model.init_args.h_lr_factor 10"
PRODUCT_FORMS = {
    "lora": METHODS["lora"],
    "centred": f"{METHODS['full']} {_FOLLOWING} {_FAST_H} {_FORM}CentredProducts",
    "normal_rows": f"{METHODS['full']} {_FORM}NormalRows",
    "separate": f"{METHODS['full']} {_FORM}SeparateFactors",
    "growing": f"{METHODS['full']} {_FAST_H} {_FORM}GrowingScale --trainer.callbacks.start 0.5",
    "flat": f"{METHODS['full']} {_FOLLOWING} {_FAST_H} {_FORM}FlatLayers --trainer.callbacks.start 0.25",
}
"""The last five of docs/RESEARCH.md; all but `normal_rows` and `separate` with products as large as
`normalised_h10`'s."""
_AT_RANK_1 = {name: words for name, words in PRODUCT_FORMS.items() if name not in ("separate", "flat")}
"""One row cannot be halved, and a spectrum of one value is flat."""
_CONTROL = {"normalised_h10": FORMS["normalised_h10"]}
"""What three of them are made from: whether they are better than that, and not only than LoRA."""


def device_ids(rank: int) -> Study:
    """The quickstart's task, made harder: the id of the device that is meant has to be known."""
    folder = "device_ids"
    options = (
        f"--data.init_args.batch_size 16 --data.init_args.eval_batch_size 48 --data.init_args.max_train_rows null "
        "--data.init_args.max_val_rows null --data.init_args.max_test_rows null --model.init_args.max_new_tokens 10 "
        f"--trainer.accelerator cpu --trainer.max_epochs {EPOCHS} --trainer.check_val_every_n_epoch {EPOCHS + 1} "
        r"--pera.exclude_modules model\.model\.layers\.(1?\d|2[0-3]) --trainer.callbacks null "
        "--trainer.callbacks+=benchmarks.quality.frozen_layers.FrozenLayers --trainer.callbacks.count 24 "
        "--trainer.callbacks.of_all_seeds true"
    )
    return Study(
        name=f"device_ids_upper_rank_{rank}",
        task="Device ids",
        about="SmolLM2-135M-Instruct in bfloat16, float32 adapters in every linear layer of the upper six of thirty "
        f"layers; {FACTS} devices, each with a number of four digits to be learned by heart from "
        f"{len(TEMPLATES['train'])} wordings, batches of 16, {EPOCHS} epochs of {ROWS} rows; asked for in two other "
        "wordings to select by, and in two more to test, where the call is generated and has to be right to the digit "
        "(exact match).",
        rank=rank,
        config="configs/quickstart.yaml",
        data={f"data.init_args.{split}_files": f"{folder}/{split}.jsonl" for split in ("train", "val", "test")},
        options=options,
        metric="loss",
        mode="min",
        also="exact_match",
        learning_rates=(2.5e-3, 5e-3, 1e-2),
        methods=UPPER_FORMS,
        seeds=(0, 1, 2),
        tuning_seeds=1,
        write_data=write_device_ids,
    )


def form_studies() -> list[Study]:
    """Each looks at the question of others again, with methods of its own."""
    small = [
        dataclasses.replace(
            study,
            name=f"forms_{study.name}",
            about=study.about.replace(f"{SMALL_STEPS} steps", f"{SHORT_STEPS} steps"),
            options=f"{study.options} --data.init_args.max_train_blocks {16 * SHORT_STEPS}",
            learning_rates=(2.2e-2, 3.3e-2) if rank < 4 else (1.6e-2, 2.4e-2),
            methods=(_AT_RANK_1 if rank == 1 else PRODUCT_FORMS) | _CONTROL,
            seeds=(0, 1, 2),
            tuning_seeds=1,
        )
        for rank in (1, 2, 4)
        for study in (small_model(rank),)
    ]
    # A quarter of the steps, for the same reason.
    upper = [
        glue(
            f"forms_{name}_upper_rank_2",
            dataclasses.replace(UPPER[name], rows=1600, epochs=1, learning_rates=(3e-3, 1e-2)),
            name,
            2,
            upper=True,
            methods=PRODUCT_FORMS,
        )
        for name in ("stsb", "sst2", "mrpc")
    ]
    return [
        dataclasses.replace(
            study,
            task=f"Further products: {study.task}",
            about=f"{study.about} Seed 0 chooses the learning rate, of three seeds. The energy of `centred`, "
            "`normal_rows` and `separate`, whose products are others, is "
            "`test_energy` in the file of results, not the one in the table.",
            is_closer_look=True,
        )
        for study in (*small, *upper)
    ]
