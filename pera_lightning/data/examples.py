"""Examples: token ids with labels, their truncation, and their compact storage."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORE_INDEX = -100
"""Label of a token that takes no part in the loss."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Args:
        input_ids: Token ids.
        labels: The same ids where an answer is to be learnt, elsewhere -100; as long as `input_ids`.
        prompt_cut: Whether prompt tokens were cut off to keep to the maximum length.
        answer_cut: Whether answer tokens were cut off.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_cut: bool = False
    answer_cut: bool = False


def truncate(
    ids: list[int], prompt_length: int, max_length: int, *, keep_first: int = 0, keep_last: int = 1
) -> Example:
    """Cuts an example of one prompt and one answer to the maximum length.

    The answer stays whole if it fits beside the last `keep_last` tokens of the prompt: the prompt loses
    tokens after its first `keep_first` ones, or from the left where these do not fit. An answer that does
    not fit loses its end.

    Args:
        ids: Token ids of prompt and answer, more than `max_length`.
        prompt_length: How many of them are the prompt.
        max_length: How many to keep; more than `keep_last`.
        keep_first: Tokens at the beginning to keep where possible (bos, system message).
        keep_last: Tokens at the end of the prompt that are always kept (generation prompt).
    """
    prompt, answer = ids[:prompt_length], ids[prompt_length:]
    room = max(max_length - len(answer), keep_last)
    if keep_first + keep_last > room:
        keep_first = 0
    kept_prompt = prompt[:keep_first] + prompt[prompt_length - (room - keep_first) :]
    kept_answer = answer[: max_length - room]
    return Example(
        input_ids=kept_prompt + kept_answer,
        labels=[IGNORE_INDEX] * room + kept_answer,
        prompt_cut=True,
        answer_cut=len(kept_answer) < len(answer),
    )


def last_answer(labels: Tensor) -> tuple[int, int]:
    """Start and end of the last run of labels other than -100 in a vector; twice its length where there is none."""
    positions = (labels != IGNORE_INDEX).nonzero().flatten()
    if positions.numel() == 0:
        return len(labels), len(labels)
    end = int(positions[-1]) + 1
    gaps = (labels[:end] == IGNORE_INDEX).nonzero().flatten()
    return (int(gaps[-1]) + 1 if gaps.numel() else 0), end


class ExampleDataset(Dataset[dict[str, Tensor]]):
    """Examples in two flat tensors, which take few bytes and reach worker processes without a copy.

    Item: a dict of int64 tensors `input_ids (T,)` and `labels (T,)`.

    Args:
        examples: The examples, consumed once.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        ids, labels, ends = array("i"), array("i"), [0]
        for example in examples:
            ids.extend(example.input_ids)
            labels.extend(example.labels)
            ends.append(len(ids))
        self._ids = torch.tensor(ids, dtype=torch.int32)
        self._labels = torch.tensor(labels, dtype=torch.int32)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = slice(self._ends[index], self._ends[index + 1])
        return {"input_ids": self._ids[tokens].long(), "labels": self._labels[tokens].long()}

    @property
    def lengths(self) -> list[int]:
        """Tokens of every example."""
        return [end - start for start, end in itertools.pairwise(self._ends)]

    @property
    def largest_id(self) -> int:
        """The largest token id; -1 without any token."""
        return int(self._ids.max()) if len(self._ids) else -1

    @property
    def answer_tokens(self) -> int:
        """Tokens that take part in the loss, in all examples."""
        return int((self._labels != IGNORE_INDEX).sum())
