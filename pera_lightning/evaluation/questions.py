"""The questions of a test set, with the options that they allow."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pera_lightning.data.chat.row_formats import Message, to_messages
from pera_lightning.data.commonsense import CommonsenseTask, task_files
from pera_lightning.data.reading.parsed_row import Row, shorten
from pera_lightning.data.reading.row_files import read_rows
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError, DataError

# "Answer format: answer1/answer2/answer3", at the end of every instruction.
_FORMAT = re.compile(r"answer format:\s*(\w+(?:/\w+)+)\s*$", flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers that it allows.

    Args:
        messages: The question as a conversation without an answer.
        options: The answers it allows, as its "Answer format" lists them.
        answer: The right one.
    """

    messages: list[Message]
    options: list[str]
    answer: str

    @property
    def text(self) -> str:
        """The question itself, without a system message."""
        return self.messages[-1]["content"]


def read_tasks(
    folder: str | Path, limit: int | None = None, names: Sequence[str] | None = None
) -> dict[str, list[Question]]:
    """Reads the test sets that are in a folder.

    Args:
        folder: Folder with `<task>/test.json` for one or more of the eight tasks.
        limit: Most questions of a task, from the beginning of its file.
        names: Tasks to read; by default those that are there.

    Returns:
        The questions by task, in the order of LLM-Adapters.

    Raises:
        ConfigError: A name is none of the eight.
        DataError: There is no such file, or a row cannot be used.
    """
    known = task_files(folder)
    check_names(names or ())
    files = {task: path for task, path in known.items() if (path.is_file() if names is None else task in names)}
    if not files:
        raise DataError(
            f"There is no test set in {folder}.",
            got="none of the files " + ", ".join(f"{task}/test.json" for task in task_files(folder)),
            expected="one or more of them",
            fix="name the folder that holds a folder for each task",
        )
    questions = {task: list(itertools.islice(_questions(path), limit)) for task, path in files.items()}
    for task, found in questions.items():
        if not found:
            raise DataError(
                "A test set is empty.",
                got=f"no question in {files[task]}",
                expected="one or more",
                fix="complete the file, or remove it to leave the task out",
            )
    return questions


def check_names(names: Iterable[str]) -> None:
    """Raise ConfigError for a name that is none of the eight tasks."""
    known = get_args(CommonsenseTask)
    for name in names:
        if name not in known:
            raise ConfigError(
                "There is no such task.",
                got=repr(name),
                expected=f"one of {', '.join(known)}",
                fix=did_you_mean(near(name, known), "tasks of lm-evaluation-harness are named without --data"),
            )


def _questions(path: Path) -> Iterator[Question]:
    for row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        yield _question(row)


def _question(row: Row) -> Question:
    messages = to_messages(row, "alpaca")[:-1]
    listed = _FORMAT.search(str(row.fields["instruction"]))
    if listed is None:
        raise DataError(
            f"{row.where}, field 'instruction': the options are missing.",
            got=shorten(str(row.fields["instruction"])[-60:]),
            expected="an instruction that ends in 'Answer format: answer1/answer2' or the like",
            fix="correct the row",
        )
    options, answer = listed[1].split("/"), row.fields.get("answer")
    if answer not in options:
        raise DataError(
            f"{row.where}, field 'answer': it is none of the options.",
            got=shorten(repr(answer)),
            expected=f"one of {', '.join(options)}",
            fix="correct the row",
        )
    return Question(messages, options, str(answer))
