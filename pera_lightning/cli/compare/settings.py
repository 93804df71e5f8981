"""The settings of a comparison: which cannot be compared, and which its folder was made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pera_lightning.errors import ConfigError
from pera_lightning.storage.atomic import replacing

SETTINGS = "settings.json"
RESULT = "run.json"
"""In the folder of each run."""


def check_fit(method: str, words: Sequence[str], options: Mapping[str, Any], learning_rate_option: str) -> None:
    """Refuse what would make the runs of a comparison something else than its table says.

    Args:
        method: Name of the method.
        words: Its own options.
        options: All options of its fit, parsed.
        learning_rate_option: The option that `compare` sets.
    """
    trainer = options["trainer"]
    if trainer["num_nodes"] > 1 or str(trainer["devices"]) not in ("auto", "1"):
        raise ConfigError(
            "A run of a comparison is made by one process.",
            got=f"trainer.devices: {trainer['devices']}, trainer.num_nodes: {trainer['num_nodes']}",
            expected="one device",
            fix="--trainer.devices 1 --trainer.num_nodes 1, and --workers for several runs at a time",
        )
    if trainer["fast_dev_run"]:
        raise ConfigError(
            "A comparison needs whole runs.",
            got="trainer.fast_dev_run",
            expected="a training that validates and tests on the data",
            fix="leave it out; --trainer.max_steps and --trainer.limit_test_batches make short runs",
        )
    if options.get("ckpt_path") is not None:
        raise ConfigError(
            "The methods of a comparison start from the same untrained adapter.",
            got=f"ckpt_path: {options['ckpt_path']}",
            expected="a fit from its start",
            fix="leave it out; an interrupted comparison goes on when it is called again",
        )
    for name in (learning_rate_option, "seed_everything"):
        if any(word.split("=")[0] == f"--{name}" for word in words):
            raise ConfigError(
                "Learning rates and seeds are those of the comparison, the same for all methods.",
                got=f"--{name} in the method {method}",
                expected="other options in a method",
                fix="leave it out; options that multiply it, as h_lr_factor, may differ",
            )


def keep_settings(out: Path, metrics: Mapping[str, str], parsed: Mapping[str, Any]) -> None:
    """Write the settings into the folder of the comparison, or refuse other ones than are there.

    Args:
        out: The folder.
        metrics: What is selected by and reported.
        parsed: Method -> its options, parsed.
    """
    path = out / SETTINGS
    # As JSON holds them: tuples are lists there.
    settings = json.loads(json.dumps({**metrics, "methods": parsed}, default=str))
    if path.is_file():
        stored = _read(path)
        known = settings["methods"].keys() & stored["methods"].keys()
        there, here = (
            {**side, "methods": {name: side["methods"][name] for name in sorted(known)}} for side in (stored, settings)
        )
        differing = [f"{name}: {new} here, {old} there" for name, old, new in _differences(there, here)]
        if differing:
            raise ConfigError(
                f"{out} holds a comparison with other settings.",
                got="; ".join(differing[:5]) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else ""),
                expected="the settings of the runs that are there",
                fix=f"name another folder with --out, or set what the comparison there had ({path})",
            )
        settings["methods"] = stored["methods"] | settings["methods"]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored["methods"], dict):
            return stored
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        "The settings of a comparison are damaged.",
        got=str(path),
        expected="the file as compare wrote it",
        fix="delete it if the runs beside it have the settings that you give now; else name another folder with --out",
    )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, old and new value of everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
