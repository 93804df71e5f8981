"""Files and folders that options name are looked for before anything is imported: a wrong path costs no seconds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from pera_lightning import _HOMES
from pera_lightning.cli.options.checked import asks_for_help, chosen_classes
from pera_lightning.cli.options.given import Given, given_options
from pera_lightning.cli.options.known import DATA_MODULES, MODELS
from pera_lightning.cli.options.signatures import parameters
from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import AdapterFileError, CheckpointError, DataError
from pera_lightning.loading.model_place import check_model_place, is_path
from pera_lightning.storage.folder_kind import is_ours
from pera_lightning.storage.recognition.adapter_kind import ADAPTER
from pera_lightning.storage.recognition.no_checkpoint import refuse_no_checkpoint, refuse_other_folders
from pera_lightning.storage.remote import RemotePath, local_name, place

_READ = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
"""The splits that a command reads."""
_INSTEAD = {"val": "train", "predict": "test"}
"""What they are taken from where they have no files of their own."""
_NAMES_PATHS = re.compile(r"(?:(train|val|test|predict)_)?(?:files?|folder)")
"""What options of DataModules that name files or folders are called, with the split that they are of."""
_ANY = "any"
_MEASURING = ("validate", "test", "predict")
"""Commands that an adapter's folder will do for, in place of a checkpoint."""
_NOT_PATHS = ("last", "hpc", "registry")


def check_places(command: str, words: Sequence[str], *, resumes: bool = True) -> None:
    """Refuse paths that do not exist; those of classes that are not ours are left to them.

    Args:
        command: Of the Trainer's.
        words: What stands behind it.
        resumes: Whether a checkpoint is read.

    Raises:
        ConfigError: There is no such model.
        DataError: There is no such data file.
        CheckpointError: There is no such checkpoint, or the command cannot take it.
        AdapterFileError: There is no such LoRA to start from.
    """
    given = given_options(words)
    if asks_for_help(words, given):
        return
    classes = chosen_classes(given)
    for one in that_count(given, "ckpt_path") if resumes else ():
        check_checkpoint(command, one.value, as_archive=_reads_archives(given))
    if missing := _missing(that_count(given, "pera.init_from")):
        got, fix = missing
        raise AdapterFileError("The LoRA to start from does not exist.", got=got, expected="its folder", fix=fix)
    if classes.get("data") in DATA_MODULES:
        named = data_options(command, classes["data"], given)
        named += [one for one in that_count(given, "data.dataset") if one.value and is_path(one.value)]
        if missing := _missing(named):
            got, fix = missing
            raise DataError("A data file or folder does not exist.", got=got, expected="a path that exists", fix=fix)
    if classes.get("model") in MODELS:
        for one in that_count(given, "model.pretrained"):
            if one.value:
                check_model_place(local_name(one.value, "the base model"))


def check_checkpoint(command: str | None, path: str | Path | None, *, as_archive: bool = False) -> None:
    """Look for a checkpoint before the model and the data are loaded.

    Args:
        command: Of the command line.
        path: What `ckpt_path` is.
        as_archive: Whether a file has to be as `torch.save` writes it.

    Raises:
        CheckpointError: There is none.
    """
    if str(path) == "best":
        raise CheckpointError(
            "Which checkpoint is the best one only the process of the fit knows.",
            got="--ckpt_path best in a process of its own",
            expected="the path of a checkpoint",
            fix="name the file; the fit's log and the card of its adapter folder say which it is",
        )
    if path in (None, *_NOT_PATHS) or str(path).lower().startswith("registry:"):
        return
    found = place(path)
    # An empty path would be the working directory.
    if str(path) and found.exists():
        if isinstance(found, Path) and not (command in _MEASURING and is_ours(found, ADAPTER)):
            (refuse_no_checkpoint if as_archive else refuse_other_folders)(found)
        return
    if isinstance(found, RemotePath):
        found.check_reached()
    otherwise = "correct the path; a fit that ended before its first validation has no best checkpoint"
    raise CheckpointError(
        "There is no such checkpoint.",
        got=f"{path or 'an empty path'} (from {Path.cwd()})",
        expected="a checkpoint that a fit has written",
        fix=did_you_mean(near_paths(found), otherwise) if isinstance(found, Path) and str(path) else otherwise,
    )


def that_count(given: Sequence[Given], key: str) -> list[Given]:
    """What an option was set to last, with what `--option+` added to that; nothing for null."""
    found: list[Given] = []
    for one in given:
        if one.key == key:
            found = [*found, one] if one.place.endswith("+") else [one]
    return [one for one in found if one.value not in (None, "null")]


def _reads_archives(given: Sequence[Given]) -> bool:
    """Whether files have to be archives of torch: without `PeraCallback` or safe loading a plugin may write others."""
    last = {one.key: one.value for one in given}
    return last.get("pera") != "null" and last.get("weights_only") != "false"


def data_options(command: str, name: str, given: Sequence[Given]) -> list[Given]:
    """The options with files or folders that a command reads.

    Args:
        command: Of the Trainer's.
        name: Of a DataModule of ours.
        given: All options.
    """
    options: dict[str, list[Given]] = {}
    for option in parameters(_HOMES[name], name):
        if found := _NAMES_PATHS.fullmatch(option):
            options.setdefault(found[1] or _ANY, []).extend(that_count(given, f"data.{option}"))
    splits = [split if options.get(split) else _INSTEAD.get(split, split) for split in _READ[command]]
    return [one for split in (*splits, _ANY) for one in options.get(split, ())]


def _missing(options: Iterable[Given]) -> tuple[str, str] | None:
    """The first path in some options that does not exist: where it was named, and what may have been meant."""
    for one in options:
        for name in paths_in(one.value or ""):
            path = place(name)
            if isinstance(path, Path) and not path.exists():
                got = f"{one.key}: {name} ({one.place}; from {Path.cwd()})"
                return got, did_you_mean(near_paths(path), "correct the path")
    return None


def paths_in(value: str) -> Iterator[str]:
    """The paths in an option's value: one, or a list as YAML."""
    try:
        values = yaml.safe_load(value)
    except yaml.YAMLError:
        values = value
    for one in values if isinstance(values, list) else [value]:
        if isinstance(one, str) and one not in ("", "null"):
            yield one
