"""Files and folders that options name are looked for before anything is imported: a wrong path costs no seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from pera_lightning.cli.options.checked import asks_for_help, chosen_classes
from pera_lightning.cli.options.given import Given, given_options
from pera_lightning.cli.options.known import DATA_MODULES, MODELS
from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import AdapterFileError, CheckpointError, DataError
from pera_lightning.loading.model_place import check_model_place
from pera_lightning.storage.remote import RemotePath, local_name, place

_OF_TRAINING = ("train_files", "val_files", "train_file", "folder")
_OF_TEST = ("test_files", "test_folder", "folder")
_DATA = {"fit": _OF_TRAINING, "validate": ("val_files", "folder"), "test": _OF_TEST, "predict": _OF_TEST}
"""Options of our DataModules that name files or folders, by the command that reads them."""
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
        CheckpointError: There is no such checkpoint, or `fit` cannot go on from it.
    """
    given = given_options(words)
    if asks_for_help(words, given):
        return
    # What comes later counts.
    last = {one.key: one for one in given}
    classes = {group: name.removeprefix("pera_lightning.") for group, name in chosen_classes(given).items()}
    checkpoint, pretrained = last.get("ckpt_path"), last.get("model.pretrained")
    if resumes and checkpoint is not None and checkpoint.value not in (None, "null"):
        check_checkpoint(command, checkpoint.value)
    if classes.get("data") in DATA_MODULES:
        for name in _DATA[command]:
            _check_files(last.get(f"data.{name}"))
    if classes.get("model") in MODELS and pretrained is not None and pretrained.value:
        check_model_place(local_name(pretrained.value, "the base model"))


def check_adapter(given: Sequence[Given]) -> None:
    """Look for the folder in `--adapter` of a tool; raises AdapterFileError if there is none."""
    named = next((one.value for one in reversed(given) if one.key == "adapter"), None)
    path = place(named) if named else None
    if not isinstance(path, Path) or path.is_dir():
        return
    consolidate = f"make a folder of it: `pera_lightning consolidate --checkpoint {path} --out FOLDER`"
    raise AdapterFileError(
        "There is no such adapter.",
        got=f"{path} (from {Path.cwd()}), which is {'a file' if path.exists() else 'nothing'}",
        expected="a folder that a fit or save_adapter has written",
        fix=consolidate if path.is_file() else did_you_mean(near_paths(path), "correct the path"),
    )


def check_checkpoint(command: str | None, path: str | Path | None) -> None:
    """Look for a checkpoint before the model and the data are loaded.

    Args:
        command: Of the command line; `fit` alone cannot go on from an adapter folder.
        path: What `ckpt_path` is.

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
    if path is None or str(path) in _NOT_PATHS or str(path).lower().startswith("registry:"):
        return
    found = place(path)
    # An empty path would be the working directory.
    if str(path) and found.exists():
        if command == "fit" and isinstance(found, Path) and found.is_dir():
            from pera_lightning.checkpoint.training.checkpoint_archive import refuse_other_folders

            refuse_other_folders(found)
        return
    if isinstance(found, RemotePath):
        found.check_reached()
    otherwise = "correct ckpt_path; a fit that ended before its first validation has no best checkpoint"
    raise CheckpointError(
        "There is no such checkpoint.",
        got=f"{path or 'an empty path'} (from {Path.cwd()})",
        expected="a checkpoint that a fit has written",
        fix=did_you_mean(near_paths(found), otherwise) if isinstance(found, Path) and str(path) else otherwise,
    )


def _check_files(given: Given | None) -> None:
    for name in _names(given.value) if given is not None and given.value else ():
        path = place(name)
        if given is not None and isinstance(path, Path) and not path.exists():
            raise DataError(
                "A data file or folder does not exist.",
                got=f"{given.key}: {name} ({given.place}; from {Path.cwd()})",
                expected="a path that exists",
                fix=did_you_mean(near_paths(path), "correct the path"),
            )


def _names(value: str) -> Iterator[str]:
    """The paths in an option's value: one, or a list as YAML."""
    try:
        values = yaml.safe_load(value)
    except yaml.YAMLError:
        values = value
    for one in values if isinstance(values, list) else [value]:
        if isinstance(one, str) and one != "null":
            yield one
