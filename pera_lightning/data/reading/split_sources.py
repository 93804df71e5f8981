"""Where the rows of the train, val and test splits come from: files, or a data set of the hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pera_lightning.data.chat.conversations import OnBadRow
from pera_lightning.data.option_errors import check_choice, contradiction
from pera_lightning.data.reading.parsed_row import ParsedRow
from pera_lightning.data.reading.row_files import (
    ROW_ENDINGS,
    check_file,
    dataset_rows,
    load_hub_dataset,
    read_rows,
)
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import local_name, local_path

Split = Literal["train", "val", "test", "predict"]

_HUB_SPLITS: dict[Split, str] = {"train": "train", "val": "validation", "test": "test", "predict": "predict"}


def as_paths(files: str | list[str] | None) -> list[Path]:
    """Returns the files of a split as paths; a data module gets one, several or none."""
    if files is None:
        return []
    return [local_path(file, "a data file") for file in ([files] if isinstance(files, str | os.PathLike) else files)]


def no_data(split: Split, hub_splits: list[str] | None, fix: str) -> ConfigError:
    """Returns the error of a split that has no source."""
    return ConfigError(
        f"There is no data for the {split} split.",
        got=f"neither {split}_files nor dataset"
        if hub_splits is None
        else f"a data set with the splits {', '.join(hub_splits)}",
        expected=f"rows to {'train on' if split == 'train' else 'evaluate'}",
        fix=fix,
    )


@dataclass(frozen=True, kw_only=True)
class RowSources:
    """The sources of every split.

    Args:
        files: Files of every split.
        dataset: Hub id or folder to use instead of files.
        dataset_config: Configuration (subset) of the data set.
        on_bad_row: Raise at the first bad row, or skip bad rows.
        endings: What names of files may end in.

    Raises:
        ConfigError: If an option has an impossible value, or two contradict each other.
    """

    files: Mapping[Split, list[Path]]
    dataset: str | None
    dataset_config: str | None
    on_bad_row: OnBadRow
    endings: Sequence[str] = ROW_ENDINGS

    def __post_init__(self) -> None:
        check_choice("on_bad_row", self.on_bad_row, OnBadRow)
        if self.dataset is not None:
            object.__setattr__(self, "dataset", local_name(self.dataset, "dataset"))
        if self.dataset is not None and any(self.files.values()):
            raise contradiction("dataset and files", "either dataset or files")

    @property
    def train_name(self) -> str:
        """What is trained on, for model cards: names only, not where files lie on this machine."""
        return self.dataset or ", ".join(path.name for path in self.files["train"])

    def download(self) -> None:
        """Brings the data set of the hub, if one is used, into the local cache."""
        if self.dataset is not None:
            load_hub_dataset(self.dataset, self.dataset_config)

    def has(self, split: Split) -> bool:
        """Says whether there is anything to read for the split."""
        return bool(self.files[split]) or (self.dataset is not None and _HUB_SPLITS[split] in self._hub_dataset)

    def needed_in(self, stage: str) -> list[Split]:
        """The splits that a stage of the Trainer uses; validation only where there is data for it."""
        if stage == "fit":
            return ["train", "val"] if self.has("val") else ["train"]
        return ["val"] if stage == "validate" else ["test"]

    def check(self, split: Split) -> None:
        """Checks that the split has a source, without reading it; files of other splits need not exist.

        Raises:
            ConfigError: If it has none.
            DataError: If a file is missing or of an unknown kind.
        """
        if not self.has(split):
            raise no_data(split, self.hub_splits, fix=f"set {split}_files")
        for path in self.files[split]:
            check_file(path, self.endings)

    def rows_of(self, split: Split) -> Iterator[tuple[str, Iterable[ParsedRow]]]:
        """Yields the name of every source of the split and its rows, which are read lazily."""
        for path in self.files[split]:
            yield str(path), read_rows(path, self.endings)
        if self.dataset is not None:
            name = f"{self.dataset} ({_HUB_SPLITS[split]})"
            yield name, dataset_rows(name, self._hub_dataset[_HUB_SPLITS[split]])

    def hub_classes(self, split: Split, column: str) -> list[str]:
        """Names of the classes whose numbers a column of the hub's data set holds; none where it tells none."""
        rows = None if self.dataset is None else self._hub_dataset.get(_HUB_SPLITS[split])
        return list(getattr(getattr(rows, "features", {}).get(column), "names", ()))

    @property
    def hub_splits(self) -> list[str] | None:
        """The splits of the data set of the hub; None without one."""
        return None if self.dataset is None else list(self._hub_dataset)

    @cached_property
    def _hub_dataset(self) -> Mapping[str, Iterable[Mapping[str, Any]]]:
        assert self.dataset is not None
        return load_hub_dataset(self.dataset, self.dataset_config)
