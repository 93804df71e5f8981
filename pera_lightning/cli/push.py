"""`push`: an adapter or an export onto the hub."""

from __future__ import annotations

from pathlib import Path

from pera_lightning.checkpoint.adapter_folder import read_adapter, read_weights
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.cli.screen import show
from pera_lightning.errors import AdapterFileError, ConfigError, one_line
from pera_lightning.export.export_report import REPORT_FILE
from pera_lightning.export.forms import LORA_FORMS
from pera_lightning.export.place import export_kind
from pera_lightning.option_checks import check_flags
from pera_lightning.storage.bounded_json import read_json
from pera_lightning.storage.folder_kind import is_ours, listed_files
from pera_lightning.storage.recognition.adapter_kind import ADAPTER, CARD_FILE, CONFIG_FILE
from pera_lightning.storage.remote import local_path

WEIGHTS = tuple(dict.fromkeys(name for form in LORA_FORMS.values() for name in form.files))
"""Files that hold an adapter; those of PERA's own have the same name as PEFT's."""
FILES = (CARD_FILE, CONFIG_FILE, *WEIGHTS, REPORT_FILE)
"""What is uploaded, and nothing else: no checkpoints, optimizer states, logs or data."""


def push(folder: str, repo: str, private: bool = True, dry_run: bool = False, message: str = "PERA adapter") -> None:
    """Upload an adapter folder, or an export of it (merged ones too), to the Hugging Face hub, with its model card.

    Only the files of the adapter are uploaded, whatever else lies in the folder. The hub's token is that of
    `hf auth login` or the variable HF_TOKEN.

    Args:
        folder: Folder of an adapter, as the fit or `export` wrote it.
        repo: Where to, `user/name`; it is made if needed.
        private: Make a new repository private.
        dry_run: Only print what would be uploaded; no network is needed.
        message: Of the commit.
    """
    check_flags(private=private, dry_run=dry_run)
    place = local_path(folder, "--folder")
    files = _files(place)
    _check_name(repo)
    for path in files:
        show(f"{path.name}  {path.stat().st_size:,} bytes")
    if dry_run:
        show(f"nothing was uploaded; without --dry_run these {len(files)} files go to {repo}")
        return
    from huggingface_hub import HfApi

    api, names = HfApi(), [path.name for path in files]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        show(api.upload_folder(repo_id=repo, folder_path=place, allow_patterns=names, commit_message=message))
    # Any: which library talks to the network, and with what errors, differs between versions of huggingface_hub.
    except Exception as error:
        raise ConfigError(
            "The hub did not take the upload.",
            got=f"{repo!r}: {one_line(error)}",
            expected="a repository user/name that you may write to, and a network",
            fix="log in with `hf auth login`, and check the name",
        ) from error


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        reason = None if "/" in repo else "no user or organisation before a /"
    except HFValidationError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(
            "The hub has no repositories of such a name.",
            got=f"{repo!r}: {reason}",
            expected="user/name",
            fix="correct --repo",
        )


def _of_merged(folder: Path) -> list[str]:
    """What a merged export has written, as its report lists it; empty for another folder."""
    if not is_ours(folder, export_kind("merged")):
        return []
    return listed_files(read_json(folder / REPORT_FILE))


def _files(folder: Path) -> list[Path]:
    names = _of_merged(folder) or FILES
    found = [folder / name for name in names if (folder / name).is_file()]
    if not any(path.name in WEIGHTS or path.suffix in (".safetensors", ".gguf") for path in found):
        raise AdapterFileError(
            "There is no adapter to upload.",
            got=f"{folder} without any of {', '.join(WEIGHTS)}",
            expected="a folder that a fit or `export` wrote",
            fix="check the path",
        )
    for path in found:
        infinite = not_finite(read_weights(path)) if path.suffix == ".safetensors" else {}
        if infinite:
            raise AdapterFileError(
                "The adapter to upload holds values that are not finite.",
                got=f"{path}: {describe_infinite(infinite)}",
                expected="finite values",
                fix="training has diverged: take an earlier checkpoint, of which `consolidate` makes a folder",
            )
    if names is FILES and is_ours(folder, ADAPTER):
        # Damage is found out here, not by those who load it.
        read_adapter(folder)
    return found
