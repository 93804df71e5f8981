"""Tiny encoders in folders, and small files of GLUE tasks that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch

from pera_lightning.data.reading.glue_files import GLUE_TASKS
from tests.support.pretrained import character_tokenizer, save_pretrained
from tests.support.transformers_models import transformers_model


def save_encoder(folder: Path, kind: str = "BertForSequenceClassification", **options: object) -> str:
    """Write a tiny random BERT without a head (or of another kind, with it) and a tokenizer; returns the folder."""
    torch.manual_seed(0)
    model = transformers_model(kind, **options)
    tokenizer = character_tokenizer()
    tokenizer.model_max_length = 64
    body = model.bert if kind == "BertForSequenceClassification" else model
    return save_pretrained(folder, body, tokenizer)  # type: ignore[arg-type]


def write_task(folder: Path, task: str, rows: int) -> str:
    """Write the training and the validation file of a task, in GLUE's own format; returns the folder.

    CoLA's label says which letter a sentence repeats, STS-B's score how often; in other tasks every label has a letter.
    """
    folder.mkdir()
    for name in ("train", "dev_matched" if task == "mnli" else "dev"):
        text = _header(task) + "".join(_line(task, number) for number in range(rows))
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return str(folder)


def _header(task: str) -> str:
    spec = GLUE_TASKS[task]
    return "" if spec.header else "\t".join(("index", *spec.texts, spec.label)) + "\n"


def _line(task: str, number: int) -> str:
    if task == "stsb":
        return f"{number}\t{'a' * (1 + number % 5)}\t{'b' * (1 + number % 3)}\t{number % 5}.5\n"
    if task == "cola":
        return f"source\t{number % 2}\t\t{'ab'[number % 2] * (1 + number % 7)}\n"
    spec = GLUE_TASKS[task]
    labels = list(spec.labels or ())
    kind = number % len(labels)
    texts = ["abc"[kind] * (1 + (number + place) % 7) for place in range(len(spec.texts))]
    return "\t".join((str(number), *texts, labels[kind])) + "\n"
