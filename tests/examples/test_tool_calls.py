"""The generator of the quickstart's data: honest splits, valid answers, the same bytes for the same seed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tool_calls"
sys.path.insert(0, str(FOLDER))

import generate  # noqa: E402
import times  # noqa: E402
import values  # noqa: E402
from tools import TOOLS  # noqa: E402

SPLIT_PAIRS = tuple(itertools.combinations(("train", "val", "test"), 2))
PARTS = {"seconds": "s", "minutes": "min", "minute": "min", "hours": "h", "hour": "h"}


@pytest.fixture(scope="module")
def splits() -> dict[values.Split, list[generate.Row]]:
    return generate.make_splits(train=3000, val=100, test=200, seed=0)


def all_templates(split: values.Split) -> set[str]:
    return {t for tool in TOOLS for t in tool.templates[split].commands + tool.templates[split].others}


def polite_phrases(split: values.Split) -> set[str]:
    words = generate.POLITENESS[split]
    return {*words.before_commands, *words.before_any, *words.after}


def open_pools() -> list[values.Pool]:
    return [pool for tool in TOOLS for pool in tool.arguments.values() if not pool.closed]


def mentions(prompt: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt) is not None


def test_sizes_and_every_tool_in_every_split(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3000, "val": 100, "test": 200}
    assert len(TOOLS) >= 12
    for rows in splits.values():
        assert {row.tool for row in rows} == {tool.name for tool in TOOLS}


def test_no_request_occurs_twice(splits):
    prompts = [row.prompt for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(("one", "other"), SPLIT_PAIRS)
def test_no_two_splits_share_a_template(splits, one, other):
    assert all_templates(one).isdisjoint(all_templates(other))
    assert {row.template for row in splits[one]}.isdisjoint(row.template for row in splits[other])


def test_every_split_uses_its_own_templates_only(splits):
    for split, rows in splits.items():
        assert {row.template for row in rows} <= all_templates(split)


def test_test_asks_for_each_tool_in_two_or_three_ways():
    for tool in TOOLS:
        assert 2 <= len(tool.templates["test"].commands + tool.templates["test"].others) <= 3


@pytest.mark.parametrize("split", ["val", "test"])
def test_arguments_go_together_as_in_training(split):
    for tool in TOOLS:
        asked = {
            part: {frozenset(generate.PLACEHOLDER.findall(t)) for t in templates.commands + templates.others}
            for part, templates in tool.templates.items()
        }
        assert asked[split] <= asked["train"], tool.name


@pytest.mark.parametrize(("one", "other"), SPLIT_PAIRS)
def test_no_two_splits_share_polite_phrases(splits, one, other):
    assert polite_phrases(one).isdisjoint(polite_phrases(other))
    for row in splits[one]:
        assert not row.prompt.startswith(tuple(f"{words} " for words in polite_phrases(other)))
        assert not row.prompt.endswith(tuple(f" {words}" for words in polite_phrases(other)))


@pytest.mark.parametrize(("one", "other"), SPLIT_PAIRS)
def test_no_two_splits_share_a_value_of_an_open_pool(one, other):
    for pool in open_pools():
        assert {value.written for value in pool.values[one]}.isdisjoint(value.written for value in pool.values[other])
        assert len({value.written for value in pool.values[other]}) >= 2


@pytest.mark.parametrize(("one", "other"), SPLIT_PAIRS)
def test_no_name_of_a_later_split_is_mentioned_anywhere_in_an_earlier_one(splits, one, other):
    values_of_other = {str(value.written) for pool in open_pools() for value in pool.values[other]}
    names = {value for value in values_of_other if value.replace(" ", "").isalpha()}
    assert len(names) > 40
    prompts = "\n".join(row.prompt for row in splits[one])
    assert [name for name in names if mentions(prompts, name)] == []


def test_every_split_uses_its_own_values_only(splits):
    tools = {tool.name: tool for tool in TOOLS}
    for split, rows in splits.items():
        for row in rows:
            for name, value in row.values.items():
                assert value in tools[row.tool].arguments[name].values[split]


def test_only_days_states_travel_modes_and_currencies_are_shared():
    closed = {name for tool in TOOLS for name, pool in tool.arguments.items() if pool.closed}
    assert closed == {"day", "state", "mode", "from", "to"}


def test_answers_are_tool_calls_with_the_arguments_of_the_template(splits):
    tools = {tool.name: tool for tool in TOOLS}
    for rows in splits.values():
        for row in rows:
            answer = json.loads(row.completion)
            assert row.completion == json.dumps(answer)
            assert next(iter(answer)) == "tool"
            tool = tools[answer.pop("tool")]
            names = [name for name in tool.arguments if f"{{{name}}}" in row.template]
            assert list(answer) == names
            assert all(value.spoken in row.prompt for value in row.values.values())


def read_number(words: str) -> int:
    """Reads "120" or "one hundred and twenty", independently of how the generator writes them."""
    if words.isdigit():
        return int(words)
    total = 0
    for word in words.replace(" and ", " ").split():
        if word == "hundred":
            total *= 100
        elif word in values.ONES:
            total += values.ONES.index(word)
        else:
            total += 10 * values.TENS.index(word)
    return total


def read_time(words: str) -> str:
    """Reads "quarter to nine" as 08:45."""
    if ":" in words:
        hour, minute = map(int, words.split(":"))
    elif relative := re.fullmatch(r"(half|quarter) (past|to) (\w+)", words):
        amount = {"half": 30, "quarter": 15}[relative.group(1)]
        total = 60 * read_number(relative.group(3)) + (amount if relative.group(2) == "past" else -amount)
        hour, minute = divmod(total, 60)
    else:
        first, _, rest = words.removesuffix(" o'clock").partition(" ")
        hour, minute = read_number(first), read_number(rest) if rest else 0
    return f"{hour or 12:02d}:{minute:02d}"


def read_duration(words: str) -> str:
    special = {"half an hour": "30 min", "a quarter of an hour": "15 min", "three quarters of an hour": "45 min"}
    if words in special:
        return special[words]
    amount, unit = words.rsplit(" ", 1)
    return f"{1 if amount in ('a', 'an') else read_number(amount)} {PARTS[unit]}"


def read_quantity(words: str) -> int:
    return {"a dozen": 12, "half a dozen": 6, "a couple of": 2}.get(words) or read_number(words)


READERS = {
    "time": read_time,
    "duration": read_duration,
    "quantity": read_quantity,
    **dict.fromkeys(("amount", "degrees", "brightness"), read_number),
    "day": lambda words: words.removeprefix("on "),
    "mode": lambda words: words.split()[1],
    "title": lambda words: re.sub(r"^an? ", "", words),
}


def test_answers_say_what_the_request_says(splits):
    for rows in splits.values():
        for row in rows:
            for name, value in row.values.items():
                assert value.written == READERS.get(name, str)(value.spoken), row


@pytest.mark.parametrize(
    ("hour", "minute", "spoken"),
    [
        (6, 30, "half past six"),
        (6, 30, "six thirty"),
        (6, 45, "quarter to seven"),
        (12, 45, "quarter to one"),
        (7, 0, "seven"),
    ],
)
def test_times_are_said_as_people_say_them(hour, minute, spoken):
    assert spoken in times.spoken_times(hour, minute)


def test_a_reserved_time_is_new_but_its_hour_and_minutes_are_not():
    seen = {str(value.written) for value in times.TIMES.values["train"]}
    for value in times.TIMES.values["val"] + times.TIMES.values["test"]:
        hour, minute = str(value.written).split(":")
        assert value.written not in seen
        assert any(time.startswith(hour) for time in seen)
        assert any(time.endswith(minute) for time in seen)


def test_the_seed_decides(splits):
    again = generate.make_splits(train=3000, val=100, test=200, seed=0)
    other = generate.make_splits(train=3000, val=100, test=200, seed=1)
    assert again == splits
    for split, rows in splits.items():
        assert [row.prompt for row in other[split]] != [row.prompt for row in rows]


def test_the_size_of_one_split_leaves_the_others_as_they_are(splits):
    other = generate.make_splits(train=28, val=14, test=200, seed=0)
    assert other["test"] == splits["test"]


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="Ask for fewer rows"):
        generate.make_splits(train=0, val=0, test=200_000, seed=0)


def test_the_command_line_writes_prompt_and_completion_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        command = [sys.executable, str(FOLDER / "generate.py"), "--out", str(tmp_path / folder)]
        subprocess.run([*command, "--train", "42", "--val", "14", "--test", "28", "--seed", "7"], check=True)
    for name, count in (("train", 42), ("val", 14), ("test", 28)):
        text = (tmp_path / "a" / f"{name}.jsonl").read_bytes()
        assert text == (tmp_path / "b" / f"{name}.jsonl").read_bytes()
        rows = [json.loads(line) for line in text.decode().splitlines()]
        assert len(rows) == count
        assert all(list(row) == ["prompt", "completion"] for row in rows)
