"""The generator of the quickstart's data: honest splits, valid answers, the same bytes for the same seed."""

from __future__ import annotations

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

PARTS = {"seconds": "s", "minutes": "min", "minute": "min", "hours": "h", "hour": "h"}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[generate.Row]]:
    return generate.make_splits(train=3000, val=100, test=200, seed=0)


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


def test_no_template_of_validation_or_test_occurs_in_training(splits):
    seen = {row.template for row in splits["train"]}
    assert seen.isdisjoint(row.template for name in ("val", "test") for row in splits[name])
    for tool in TOOLS:
        assert set(tool.seen.commands + tool.seen.others).isdisjoint(tool.held_out.commands + tool.held_out.others)


def test_no_polite_words_of_validation_or_test_occur_in_training(splits):
    held_out = generate.HELD_OUT_POLITENESS
    words = (*held_out.before_commands, *held_out.before_any, *held_out.after)
    for row in splits["train"]:
        assert not row.prompt.startswith(tuple(f"{w} " for w in words))
        assert not row.prompt.endswith(tuple(f" {w}" for w in words))


def test_no_reserved_value_occurs_in_training(splits):
    for tool in TOOLS:
        rows = [row for row in splits["train"] if row.tool == tool.name]
        for name, pool in tool.arguments.items():
            if pool.closed:
                continue
            seen = {row.values[name] for row in rows if name in row.values}
            reserved = {value.written for value in pool.held_out}
            assert seen <= set(pool.seen)
            assert reserved.isdisjoint(value.written for value in seen), (tool.name, name)


def test_no_reserved_name_is_mentioned_anywhere_in_training(splits):
    pools = [pool for tool in TOOLS for pool in tool.arguments.values() if not pool.closed]
    words = {v.written for pool in pools for v in pool.held_out if str(v.written).replace(" ", "").isalpha()}
    assert len(words) > 80
    training = "\n".join(row.prompt for row in splits["train"])
    assert [word for word in words if mentions(training, str(word))] == []


def test_validation_and_test_use_reserved_values_only(splits):
    tools = {tool.name: tool for tool in TOOLS}
    for row in splits["val"] + splits["test"]:
        for name, value in row.values.items():
            assert value in tools[row.tool].arguments[name].held_out


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
    seen = {str(value.written) for value in times.TIMES.seen}
    for value in times.TIMES.held_out:
        hour, minute = str(value.written).split(":")
        assert value.written not in seen
        assert any(time.startswith(hour) for time in seen)
        assert any(time.endswith(minute) for time in seen)


def test_the_seed_decides(splits):
    again = generate.make_splits(train=3000, val=100, test=200, seed=0)
    other = generate.make_splits(train=3000, val=100, test=200, seed=1)
    assert again == splits
    assert [row.prompt for row in other["test"]] != [row.prompt for row in splits["test"]]


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
