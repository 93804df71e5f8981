"""Small files in the format of LLM-Adapters' commonsense data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OPTIONS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "social_i_qa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "ARC-Easy": ["answer1", "answer2", "answer3", "answer4"],
    "ARC-Challenge": ["answer1", "answer2", "answer3", "answer4", "answer5"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}


def question(task: str, number: int) -> dict[str, Any]:
    """A row; the right option goes round."""
    options = OPTIONS[task]
    answer = options[number % len(options)]
    instruction = f"please answer: {'x' * number} {number}?\n\nanswer format: {'/'.join(options)}"
    return {
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def write_commonsense(folder: Path, rows: int = 5, train_rows: int = 40) -> Path:
    """Write `train.json` and the eight test sets; returns the folder."""
    for task in OPTIONS:
        (folder / task).mkdir(parents=True)
        write_rows(folder / task / "test.json", [question(task, number) for number in range(rows)])
    tasks = list(OPTIONS)
    write_rows(folder / "train.json", [question(tasks[number % 8], number) for number in range(train_rows)])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")
