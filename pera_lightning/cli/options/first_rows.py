"""The first rows of data files are looked at before lightning is imported: a wrong field costs no seconds.

What the fields of rows are is the matter of `data/`, whose functions without torch are asked here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pera_lightning.cli.options.checked import asks_for_help, chosen_classes
from pera_lightning.cli.options.given import Given, given_options
from pera_lightning.cli.options.places import data_options, paths_in
from pera_lightning.storage.remote import place

_CHAT, _LABELLED = ("InstructionDataModule", "CommonsenseDataModule"), "ClassificationDataModule"
_LARGEST = 16 << 20
"""Bytes of a file of which more than the first rows may have to be read for them: all but JSON Lines."""


def check_first_rows(command: str, words: Sequence[str]) -> None:
    """Refuse files whose first rows lack the fields that our DataModules read.

    Args:
        command: Of the Trainer's.
        words: What stands behind it.

    Raises:
        DataError: No format of rows has their fields, or a file is damaged at its beginning.
        ConfigError: An option names a field that is not there, or none has a usual name.
    """
    given = given_options(words)
    name = chosen_classes(given).get("data", "")
    if name not in (*_CHAT, _LABELLED) or asks_for_help(words, given) or _leaves_bad_rows_out(given):
        return
    options = {one.key: one.value for one in given}
    for option in data_options(command, name, given):
        for path in map(place, paths_in(option.value or "")):
            # Folders and URLs are left to the DataModules.
            if isinstance(path, Path) and path.is_file():
                _check_file(path, name, options, is_labelled=option.key != "data.predict_files")


def _leaves_bad_rows_out(given: Sequence[Given]) -> bool:
    return any(one.key == "data.on_bad_row" and one.value != "error" for one in given)


def _check_file(path: Path, name: str, options: dict[str, Any], *, is_labelled: bool) -> None:
    from pera_lightning.data.chat.row_formats import ROWS_TO_DETECT, RowFormat, check_fields
    from pera_lightning.data.reading.parsed_row import Row
    from pera_lightning.data.reading.row_files import read_rows
    from pera_lightning.data.reading.text_fields import ChosenFields

    if path.suffix.lower() != ".jsonl" and path.stat().st_size > _LARGEST:
        return
    rows = list(itertools.islice(read_rows(path), ROWS_TO_DETECT))
    if name in _CHAT:
        row_format: Any = "alpaca" if name == "CommonsenseDataModule" else options.get("data.format", "auto")
        if rows and row_format in get_args(RowFormat):
            check_fields(rows, row_format)
    elif row := next((row for row in rows if isinstance(row, Row)), None):
        names = (options.get(f"data.{option}") for option in ("text_field", "text_pair_field", "label_field"))
        chosen = ChosenFields(*(None if name == "null" else name for name in names))
        chosen.texts_of(row)
        chosen.label_of(row, needed=is_labelled)
