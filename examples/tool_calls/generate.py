"""Writes the data of the quickstart: spoken requests and the tool call each of them asks for.

    python examples/tool_calls/generate.py --out data/tool_calls --train 3000 --val 100 --test 200 --seed 0

writes `train.jsonl`, `val.jsonl` and `test.jsonl`; each row holds a `prompt`, as a speech recogniser would
write it down ("wake me at half past six tomorrow"), and a `completion`, the tool call as JSON
(`{"tool": "set_alarm", "time": "06:30", "day": "tomorrow"}`). The same arguments give the same bytes.

What the test measures: validation and test rows are made only of templates, polite words around them, and values
(names, places, songs, texts, numbers, times, ...) that no training row uses. What they share with training is the
set of tools and argument names, and the few closed sets of `values.py`: days, on and off, ways to travel. A
reserved time such as half past six is new as a whole; its hour and its minutes occur in other times of the training
rows, and a number reserved for one argument may occur in another one. Validation and test rows come from the same
reserved templates and values; no request occurs in both.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tools import TOOLS, Templates, Tool
from values import Value

PLACEHOLDER = re.compile(r"{(\w+)}")
MAX_DRAWS_PER_ROW = 200


@dataclass(frozen=True)
class Politeness:
    """Words around a request: some stand only before a command, some before any request, some at the end."""

    before_commands: tuple[str, ...]
    before_any: tuple[str, ...]
    after: tuple[str, ...]


SEEN_POLITENESS = Politeness(
    ("please", "can you", "could you", "could you please", "would you", "I'd like you to"),
    ("hey,", "hi,"),
    ("please", "thanks"),
)
HELD_OUT_POLITENESS = Politeness(
    ("can you please", "I need you to", "would you please"), ("okay,", "hello,"), ("thank you", "if you can")
)


@dataclass(frozen=True)
class Row:
    """One request with what it was made of.

    Args:
        tool: Name of the tool.
        template: Template the request was made from.
        values: Placeholder of the template -> value in its place.
        prompt: The request.
        completion: The tool call as JSON.
    """

    tool: str
    template: str
    values: dict[str, Value]
    prompt: str
    completion: str


def make_row(tool: Tool, rng: random.Random, *, held_out: bool) -> Row:
    """Draws one request for a tool, from the templates and values for training or from the reserved ones."""
    templates = tool.held_out if held_out else tool.seen
    template = rng.choice(templates.commands + templates.others)
    values = _draw_values(tool, template, rng, held_out=held_out)
    request = template.format_map({name: value.spoken for name, value in values.items()})
    prompt = _polite(request, template, templates, rng, HELD_OUT_POLITENESS if held_out else SEEN_POLITENESS)
    return Row(tool.name, template, values, prompt, _tool_call(tool, values))


def _draw_values(tool: Tool, template: str, rng: random.Random, *, held_out: bool) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name in PLACEHOLDER.findall(template):
        pool = tool.arguments[name].held_out if held_out else tool.arguments[name].seen
        # Nobody converts euros into euros.
        values[name] = rng.choice([value for value in pool if value not in values.values()])
    return values


def _polite(request: str, template: str, templates: Templates, rng: random.Random, words: Politeness) -> str:
    """Puts polite words before or after about half of the requests."""
    where = rng.choice(("nowhere", "nowhere", "before", "after"))
    if where == "before":
        choices = words.before_any + (words.before_commands if template in templates.commands else ())
        return f"{rng.choice(choices)} {request}"
    # "text Anna I'm late thanks" would leave open whether the thanks belong to the message.
    if where == "after" and not template.endswith("{text}"):
        return f"{request} {rng.choice(words.after)}"
    return request


def _tool_call(tool: Tool, values: dict[str, Value]) -> str:
    arguments = {tool.keys.get(name, name): values[name].written for name in tool.arguments if name in values}
    return json.dumps({"tool": tool.name, **arguments}, ensure_ascii=False)


def make_rows(count: int, rng: random.Random, *, held_out: bool, taken: set[str]) -> list[Row]:
    """Draws different requests, the same number for every tool up to rounding, in random order.

    Args:
        count: Number of rows.
        rng: Source of randomness.
        held_out: Whether to use the reserved templates and values.
        taken: Requests not to repeat; the new ones are added.

    Raises:
        ValueError: If so many different requests cannot be made.
    """
    rows = []
    for index in range(count):
        tool = TOOLS[index % len(TOOLS)]
        for _ in range(MAX_DRAWS_PER_ROW):
            row = make_row(tool, rng, held_out=held_out)
            if row.prompt not in taken:
                break
        else:
            raise ValueError(
                f"{count} rows are too many: after {index} of them, {MAX_DRAWS_PER_ROW} draws gave no new request "
                f"for {tool.name}. Ask for fewer rows."
            )
        taken.add(row.prompt)
        rows.append(row)
    rng.shuffle(rows)
    return rows


def make_splits(train: int, val: int, test: int, seed: int) -> dict[str, list[Row]]:
    """Returns the rows of each split by its name; each split depends only on its size, the seed and, for test, val."""
    reserved: set[str] = set()
    return {
        "train": make_rows(train, random.Random(f"train {seed}"), held_out=False, taken=set()),
        "val": make_rows(val, random.Random(f"val {seed}"), held_out=True, taken=reserved),
        "test": make_rows(test, random.Random(f"test {seed}"), held_out=True, taken=reserved),
    }


def write_splits(splits: dict[str, list[Row]], folder: Path) -> None:
    """Writes each split as `<name>.jsonl` with the fields `prompt` and `completion`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = (json.dumps({"prompt": r.prompt, "completion": r.completion}, ensure_ascii=False) for r in rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Reads the command line and writes the files."""
    parser = argparse.ArgumentParser(description="Write spoken requests and their tool calls as JSON lines.")
    parser.add_argument("--out", type=Path, default=Path("data/tool_calls"), help="folder to write to")
    parser.add_argument("--train", type=int, default=3000, help="number of training rows")
    parser.add_argument("--val", type=int, default=100, help="number of validation rows")
    parser.add_argument("--test", type=int, default=200, help="number of test rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")
    options = parser.parse_args()
    write_splits(make_splits(options.train, options.val, options.test, options.seed), options.out)
    print(f"wrote {options.train} + {options.val} + {options.test} rows to {options.out}")


if __name__ == "__main__":
    main()
