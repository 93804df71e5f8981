"""Rows of data: JSON, JSON Lines, CSV, parquet and text files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.files import damage_bytes, replace_by_damaged
from tests.hostile.mutations.values import damage_value, written
from tests.hostile.outcomes import Wrong
from tests.hostile.readers.templates import check_batches

_TURNS = [{"role": "user", "content": "hello?"}, {"role": "assistant", "content": "yes."}]
FORMS: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": f"what is {n}?", "completion": f"it is {n}."} for n in range(4)],
    "alpaca": [{"instruction": f"say {n}", "input": "loudly", "output": f"{n}!"} for n in range(4)],
    "messages": [{"messages": [*_TURNS, *_TURNS], "id": n} for n in range(4)],
    "text": [{"text": f"some words about {n}. " * 5} for n in range(4)],
}
_ENDINGS = ("json", "jsonl", "csv", "parquet")


def prepare(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from tests.support.pretrained import character_tokenizer

    for form, rows in FORMS.items():
        for ending in _ENDINGS:
            if form == "messages" and ending == "csv":
                continue
            where = folder / f"{form}-{ending}"
            character_tokenizer().save_pretrained(where / "tokenizer")
            path = where / f"rows.{ending}"
            if ending == "parquet":
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            else:
                path.write_text(_text(rows, ending), encoding="utf-8", newline="")
    tokenizer = folder / "text-txt/tokenizer"
    character_tokenizer().save_pretrained(tokenizer)
    (tokenizer.parent / "rows.txt").write_text("some words about nothing. " * 50)


def _text(rows: list[Any], ending: str) -> str:
    if ending == "json":
        return written(rows)
    if ending == "jsonl":
        return "".join(written(row).replace("\n", "") + "\n" for row in rows)
    lines: list[list[Any]] = [list(rows[0]), *[list(row.values()) for row in rows]]
    return "\r\n".join(
        ",".join(json.dumps(cell) if isinstance(cell, str) else str(cell) for cell in line) for line in lines
    )


def file_of(case: Case) -> Path:
    return case.given / f"rows.{case.variant.rpartition('-')[2]}"


def damage(case: Case) -> str:
    path, random = file_of(case), case.random
    ending = path.suffix[1:]
    if random.random() < 0.3:
        return replace_by_damaged(random, path)
    if ending == "parquet":
        return _other_columns(random, path, FORMS[case.variant.rpartition("-")[0]])
    if ending in ("csv", "txt"):
        return _other_lines(random, path)
    rows = json.loads(json.dumps(FORMS[case.variant.rpartition("-")[0]]))
    done = [damage_value(random, random.choice([rows, rows[0], rows[-1]])) for _ in range(random.choice([1, 1, 2]))]
    path.write_text(_text(rows, ending), encoding="utf-8")
    return f"{path.name}: {'; '.join(done)}"


_LINES: dict[str, Callable[[Random, str], str]] = {
    "quote": lambda random, text: text.replace('"', "", 1),
    "many columns": lambda random, text: text + "\r\n" + "," * 10_000,
    "long cell": lambda random, text: text + "\r\n" + '"' + "a" * random.choice([140_000, 1_000_000]),
    "zeros": lambda random, text: text.replace(" ", "\0", 3),
    "empty lines": lambda random, text: text.replace("\n", "\n\n\n"),
    "column twice": lambda random, text: text.replace("\r\n", ",x,x\r\n", 1),
    "no header": lambda random, text: text.partition("\n")[2],
    "semicolons": lambda random, text: text.replace(",", ";"),
    "returns": lambda random, text: text.replace("\n", "\r"),
    "surrogate": lambda random, text: text.replace("a", "\udc80", 1),
    "controls": lambda random, text: text.replace("a", "\x1b[31m\x07", 2),
    "control pictures": lambda random, text: text.replace("i", "\u202e\ufeff", 2),
}


def _other_lines(random: Random, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if random.random() < 0.2:
        path.write_bytes(damage_bytes(random, text.encode()))
        return "bytes"
    name = random.choice(sorted(_LINES))
    data = _LINES[name](random, text).encode("utf-8", "surrogateescape")
    path.write_bytes(data if random.random() < 0.9 else data.decode("utf-8", "replace").encode("utf-16"))
    return f"{path.name}: {name}"


def _other_columns(random: Random, path: Path, rows: list[dict[str, Any]]) -> str:
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    values = (
        *(None, 1, 1.5, float("nan"), True, b"bytes\xff", datetime.datetime(2020, 1, 1), decimal.Decimal("1.5")),
        *({"a": 1}, [1, 2], [["a"]], {"role": None}, "", "\x00", "a" * 100_000),
    )
    name, value = random.choice(sorted(rows[0])), random.choice(values)
    table = pyarrow.Table.from_pylist([{**row, name: value} for row in rows])
    choice = random.randrange(4)
    if choice == 0:
        table = table.drop_columns([name])
    elif choice == 1:
        table = table.slice(0, 0)
    pyarrow.parquet.write_table(table, path)
    return f"{path.name}: {name} {('left out', 'without rows', repr(value)[:60], repr(value)[:60])[choice]}"


def instruct(case: Case) -> None:
    """`InstructionDataModule.setup`: batches can be trained on; good rows give their answers."""
    from transformers import AutoTokenizer

    from pera_lightning import InstructionDataModule

    path, tokenizer = str(file_of(case)), str(case.given / "tokenizer")
    bad = case.random.choice(["error", "error", "skip"])
    data = InstructionDataModule(path, path, tokenizer=tokenizer, batch_size=2, max_length=4096, on_bad_row=bad)
    data.setup("fit")
    check_batches(data, AutoTokenizer.from_pretrained(tokenizer))


def read_text(case: Case) -> None:
    """`TextDataModule.setup`."""
    from transformers import AutoTokenizer

    from pera_lightning import TextDataModule

    path, folder = str(file_of(case)), str(case.given / "tokenizer")
    data = TextDataModule(path, path, tokenizer=folder, block_length=16, batch_size=2)
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for batch in data.train_dataloader():
        if not ((batch["input_ids"] >= 0) & (batch["input_ids"] < len(tokenizer))).all():
            raise Wrong("tokens that the tokenizer does not have")


def read(case: Case) -> None:
    (read_text if case.variant.startswith("text") else instruct)(case)


def warm() -> None:
    from tests.hostile.readers.templates import warm as warm_data

    warm_data()
    assert csv


ROWS = Kind("rows of data", prepare, damage, {"DataModule.setup": read}, None, warm)
