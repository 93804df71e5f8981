"""Tiny encoders in folders, and small files of GLUE tasks that they can learn."""

from __future__ import annotations

from pathlib import Path

import torch

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
    """Write `train.tsv` and `dev.tsv`: CoLA's label says which letter a sentence repeats, STS-B's score how often."""
    folder.mkdir()
    for name in ("train", "dev"):
        lines = [_line(task, number) for number in range(rows)]
        text = STSB_HEADER + "".join(lines) if task == "stsb" else "".join(lines)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return str(folder)


STSB_HEADER = "index\tsentence1\tsentence2\tscore\n"


def _line(task: str, number: int) -> str:
    if task == "stsb":
        return f"{number}\t{'a' * (1 + number % 5)}\t{'b' * (1 + number % 3)}\t{number % 5}.5\n"
    return f"source\t{number % 2}\t\t{'ab'[number % 2] * (1 + number % 7)}\n"
