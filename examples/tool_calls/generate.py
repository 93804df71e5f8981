"""Writes the data of the quickstart: spoken requests and the tool call each of them asks for.

    python examples/tool_calls/generate.py --out data/tool_calls --train 3000 --val 100 --test 200 --seed 0

writes `train.jsonl`, `val.jsonl` and `test.jsonl`; each row holds a `prompt`, as a speech recogniser would
write it down ("wake me at half past six tomorrow"), and a `completion`, the tool call as JSON
(`{"tool": "set_alarm", "time": "06:30", "day": "tomorrow"}`). The same arguments give the same bytes.

What validation and test measure: training, validation and test rows share no template, no polite phrase around the
request, and no value (name, place, song, text, number, time, ...) of any argument, except those of the few closed sets
of `values.py`: days, on and off, ways to travel, currencies. So settings can be chosen on the validation rows, and
the test rows still ask in ways that no setting was chosen on. What all three share is the set of tools and
which arguments go together. Templates, phrases and values are new as wholes, not word by word: a new phrase may
consist of known words ("can you please"), the hour and the minutes of a reserved time such as half past six occur in
other times of the training rows, and a number reserved for one argument may occur in another one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tool import Templates, Tool
from tools import TOOLS
from values import Split, Value

from pera_lightning.storage.folder_kind import FolderKind
from pera_lightning.storage.whole_folder import whole_folder

PLACEHOLDER = re.compile(r"{(\w+)}")
MAX_DRAWS_PER_ROW = 200


@dataclass(frozen=True)
class Politeness:
    """Words around a request: some stand only before a command, some before any request, some at the end."""

    before_commands: tuple[str, ...]
    before_any: tuple[str, ...]
    after: tuple[str, ...]


POLITENESS: dict[Split, Politeness] = {
    "train": Politeness(
        (
            "please",
            "can you",
            "could you",
            "could you please",
            "would you",
            "I'd like you to",
            "go ahead and",
            "are you able to",
            "just",
            "please could you",
            "it would be great if you could",
            "would you kindly",
            "I'd appreciate it if you could",
            "I'd love you to",
        ),
        (
            "hey,",
            "hi,",
            "listen,",
            "good morning,",
            "sorry,",
            "um,",
            "oh,",
            "good evening,",
        ),
        (
            "please",
            "thanks",
            "please and thanks",
            "thanks a lot",
            "if that's all right",
            "when you're ready",
        ),
    ),
    "val": Politeness(
        ("can you please", "I need you to", "would you please"), ("okay,", "hello,"), ("thank you", "if you can")
    ),
    "test": Politeness(
        ("will you", "I want you to", "do me a favour and"), ("right,", "excuse me,"), ("cheers", "if you don't mind")
    ),
}


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


def make_row(tool: Tool, rng: random.Random, split: Split) -> Row:
    """Draws one request for a tool from the templates, values and polite phrases of a split."""
    templates = tool.templates[split]
    template = rng.choice(templates.commands + templates.others)
    values = _draw_values(tool, template, rng, split)
    request = template.format_map({name: value.spoken for name, value in values.items()})
    prompt = _polite(request, template, templates, rng, POLITENESS[split])
    return Row(tool.name, template, values, prompt, _tool_call(tool, values))


def _draw_values(tool: Tool, template: str, rng: random.Random, split: Split) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name in PLACEHOLDER.findall(template):
        pool = tool.arguments[name].values[split]
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
    arguments = {name: values[name].written for name in tool.arguments if name in values}
    return json.dumps({"tool": tool.name, **arguments}, ensure_ascii=False)


def make_rows(count: int, split: Split, seed: int) -> list[Row]:
    """Draws different requests in random order: training rows by the tools' shares, others evenly.

    Args:
        count: Number of rows.
        split: Decides the templates, values and polite phrases.
        seed: Decides the random choices, together with the split.

    Raises:
        ValueError: If so many different requests cannot be made.
    """
    rng = random.Random(f"{split} {seed}")
    rows: list[Row] = []
    taken: set[str] = set()
    turns = [tool for tool in TOOLS for _ in range(tool.share)] if split == "train" else TOOLS
    for index in range(count):
        tool = turns[index % len(turns)]
        for _ in range(MAX_DRAWS_PER_ROW):
            row = make_row(tool, rng, split)
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


def make_splits(train: int, val: int, test: int, seed: int) -> dict[Split, list[Row]]:
    """Returns the rows of each split by its name; each split depends only on its size and the seed."""
    return {
        "train": make_rows(train, "train", seed),
        "val": make_rows(val, "val", seed),
        "test": make_rows(test, "test", seed),
    }


SPLITS = FolderKind(
    "spoken requests",
    marker=".tool_calls",
    recognise=lambda values: "rows" in values,
    files=("train.jsonl", "val.jsonl", "test.jsonl"),
)


def write_splits(splits: dict[Split, list[Row]], folder: Path) -> None:
    """Writes each split as `<name>.jsonl` with the fields `prompt` and `completion`, all of them or none.

    The folder is new, empty, or of an earlier call; one with the same rows stays as it is.
    """
    contents = {f"{name}.jsonl": as_lines(rows) for name, rows in splits.items()}
    if all((folder / name).is_file() and (folder / name).read_bytes() == rows for name, rows in contents.items()):
        return
    with whole_folder(folder, SPLITS) as new:
        for name, rows in contents.items():
            (new / name).write_bytes(rows)
        about = {"rows": {name: len(rows) for name, rows in splits.items()}}
        (new / SPLITS.marker).write_text(json.dumps(about), encoding="utf-8")


def as_lines(rows: list[Row]) -> bytes:
    """The content of a file of rows."""
    lines = (json.dumps({"prompt": r.prompt, "completion": r.completion}, ensure_ascii=False) for r in rows)
    return "".join(f"{line}\n" for line in lines).encode()


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
