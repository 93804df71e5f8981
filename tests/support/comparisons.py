"""A small fit to compare methods on."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.classifiers import save_encoder, write_task


def write_fit(folder: Path) -> Path:
    """A tiny encoder, a task and the config of a fit, in a folder."""
    save_encoder(folder / "model")
    write_task(folder / "cola", "cola", 24)
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere"}},
            "callbacks": [
                {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "dirpath": "elsewhere"}}
            ],
        },
        "pera": {"rank": 2, "adapter_dir": "elsewhere"},
        "model": {"class_path": "PeraSequenceClassifier", "init_args": {"pretrained": "model"}},
        "data": {
            "class_path": "GlueDataModule",
            "init_args": {"task": "cola", "folder": "cola", "batch_size": 8, "max_train_rows": 16},
        },
    }
    (folder / "fit.yaml").write_text(yaml.safe_dump(config))
    return folder
