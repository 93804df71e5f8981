"""Options found in what models write."""

from __future__ import annotations

import pytest

from pera_lightning.evaluation import extract_answer

ANSWERS = ["answer1", "answer2", "answer3", "answer4"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("the correct answer is answer2", ANSWERS, "answer2"),
        ("Answer2.", ANSWERS, "answer2"),
        ("ANSWER3", ANSWERS, "answer3"),
        ("**answer4**\n", ANSWERS, "answer4"),
        ("_answer1_", ANSWERS, "answer1"),
        ("answer3, or maybe answer1", ANSWERS, "answer3"),  # several: the first, as in LLM-Adapters
        ("the correct answer is answer1answer1answer1", ANSWERS, None),
        ("answer12", ANSWERS, None),
        ("answer5", ANSWERS, None),  # not among the options of this question
        ("the answer is 2", ANSWERS, None),
        ("answer 2", ANSWERS, None),
        ("", ANSWERS, None),
        ("I do not know.", ANSWERS, None),
        ("solution1", ["solution1", "solution2"], "solution1"),
        ("Solution2: use glue", ["solution1", "solution2"], "solution2"),
        ("the correct answer is True", ["true", "false"], "true"),
        ("true/false", ["true", "false"], "true"),  # the format repeated: the first, as in LLM-Adapters
        ("false, it is not true", ["true", "false"], "false"),
        ("that is untrue", ["true", "false"], None),
        ("truely", ["true", "false"], None),
        ("option2\n\n### Instruction:\noption1", ["option1", "option2"], "option2"),
        ("x+y (", ["x.y", "x+y"], "x+y"),
        ("a_b", ["a", "a_b"], "a_b"),
        ("\u017folution1", ["solution1", "solution2"], "solution1"),  # a long s, which is an s in another case
    ],
)
def test_extraction(text: str, options: list[str], expected: str | None) -> None:
    assert extract_answer(text, options) == expected
