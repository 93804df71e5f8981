from __future__ import annotations

import pytest
import torch

from pera_lightning.data.examples import Example, ExampleDataset, truncate

PROMPT, ANSWER = list(range(10, 20)), [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("max_length", "prompt", "answer", "answer_cut"),
    [
        (13, [10, 11, 13, 14, 15, 16, 17, 18, 19], [1, 2, 3, 4], False),
        (9, [10, 11, 17, 18, 19], [1, 2, 3, 4], False),
        (8, [16, 17, 18, 19], [1, 2, 3, 4], False),
        (7, [17, 18, 19], [1, 2, 3, 4], False),
        (6, [17, 18, 19], [1, 2, 3], True),
        (4, [17, 18, 19], [1], True),
    ],
)
def test_truncation_spares_the_answer_then_the_generation_prompt(
    max_length: int, prompt: list[int], answer: list[int], answer_cut: bool
) -> None:
    example = truncate(PROMPT + ANSWER, len(PROMPT), max_length, keep_first=2, keep_last=3)
    assert example == Example(prompt + answer, [-100] * len(prompt) + answer, True, answer_cut)


def test_examples_come_back_as_they_were_put_in() -> None:
    examples = [Example([1, 2, 3], [-100, 2, 3]), Example([70_000, 5], [-100, 5])]
    dataset = ExampleDataset(iter(examples))
    assert len(dataset) == 2
    assert (dataset.lengths, dataset.answer_tokens) == ([3, 2], 3)
    for index, example in enumerate(examples):
        item = dataset[index]
        assert {name: values.tolist() for name, values in item.items()} == {
            "input_ids": example.input_ids,
            "labels": example.labels,
        }
        assert all(values.dtype == torch.int64 for values in item.values())
