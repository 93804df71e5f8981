"""A file of predictions says which row each is of, its text, and its class by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pera_lightning import PeraCausalLM, PeraSequenceClassifier
from pera_lightning.cli.fit.predictions import write_predictions
from pera_lightning.cli.fit.readable_predictions import readable_predictions
from pera_lightning.cli.fit.trainer import PeraCLI, make_cli
from tests.support.classifiers import save_encoder


@pytest.mark.parametrize(
    ("module", "row", "expected"),
    [
        (PeraCausalLM("x"), {"prediction": "yes"}, {"index": 7, "answer": "yes"}),
        (
            PeraSequenceClassifier("x", labels=[1, 5]),
            {"labels": 1, "scores": [0.25, 0.75]},
            {"index": 7, "label": 5, "scores": {"1": 0.25, "5": 0.75}},
        ),
        (
            PeraSequenceClassifier("x", num_labels=2),
            {"labels": 1, "scores": [0.25, 0.75]},
            {"index": 7, "label": 1, "scores": [0.25, 0.75]},
        ),
        (PeraSequenceClassifier("x", num_labels=1), {"scores": 2.5}, {"index": 7, "score": 2.5}),
        (None, {"prediction": 3}, {"index": 7, "prediction": 3}),
    ],
)
def test_names(module: Any, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert readable_predictions([dict(row)], [7], module, None) == [expected]


def test_rows_without_numbers_stay_without(tmp_path: Path) -> None:
    def readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return readable_predictions(rows, [3], None, None)

    write_predictions([["a", "b"]], tmp_path / "rows.jsonl", readable=readable)
    assert (tmp_path / "rows.jsonl").read_text() == '{"prediction": "a"}\n{"prediction": "b"}\n'


def run(folder: Path, command: str, rows: str, *words: str) -> None:
    options = {
        "seed_everything": 0,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
        "pera.rank": 2,
        "pera.energy_every_n_steps": 0,
        "model": "PeraSequenceClassifier",
        "model.pretrained": folder / "bert",
        "model.learning_rate": 0.01,
        "data": "ClassificationDataModule",
        "data.train_files": rows,
    }
    given = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    make_cli(PeraCLI, [command, *given, *words])


# Lightning's remarks, of a fit without validation and others.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_file_of_a_classifier_in_rows_of_its_own(tmp_path: Path) -> None:
    """Trained, and used on a file without labels and with a bad row, whose number is left out."""
    save_encoder(tmp_path / "bert")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{'ab'[n % 2] * (n + 1)},{['dull', 'keen'][n % 2]}\n" for n in range(16)))
    run(tmp_path, "fit", str(rows), "--trainer.max_epochs", "20", "--data.batch_size", "4")
    [checkpoint] = tmp_path.rglob("*.ckpt")
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("aaaa", "", "bbb", "bb")))
    words = ["--data.predict_files", str(new), "--data.on_bad_row", "skip", "--data.eval_batch_size", "2"]
    run(tmp_path, "predict", str(rows), "--ckpt_path", str(checkpoint), *words)
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["index"], row["text"], row["label"]) for row in found] == [
        (0, "aaaa", "dull"),
        (2, "bbb", "keen"),
        (3, "bb", "keen"),
    ]
    assert all(row.keys() == {"index", "text", "label", "scores"} for row in found)
    assert all(max(row["scores"], key=row["scores"].get) == row["label"] for row in found)
