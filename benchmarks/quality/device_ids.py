"""Tool calls that need facts learned by heart: spoken requests, and the id of the device that each of them means."""

from __future__ import annotations

import json
import random
from pathlib import Path

FACTS = 24
"""Devices with an id of their own, of four digits drawn at random."""
ROOMS = (
    *("kitchen", "attic", "cellar", "garage", "bedroom", "bathroom", "hall", "office", "library", "nursery"),
    *("studio", "pantry", "workshop", "laundry", "balcony", "greenhouse"),
)
DEVICES = (
    *("lamp", "heater", "fan", "radio", "television", "speaker", "camera", "blinds", "humidifier", "alarm"),
    *("printer", "projector"),
)
STATES = "on", "off"
TEMPLATES = {
    "train": (
        "turn {state} the {device} in the {room}",
        "please switch {state} the {room} {device}",
        "could you switch the {device} in the {room} {state}",
        "I want the {room} {device} {state}",
        "{room} {device} {state} please",
        "can you turn the {room} {device} {state} for me",
        "in the {room}, switch {state} the {device}",
        "set the {device} of the {room} to {state}",
    ),
    "val": ("would you turn the {device} of the {room} {state}", "the {room} {device} should be {state} now"),
    "test": ("make sure the {device} in the {room} is {state}", "it is time to switch the {room} {device} {state}"),
}
"""Splits share the facts and no template, so that an answer to a test row was learned, and not its wording."""


def write_device_ids(_: Path, folder: Path) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl; the same rows each time.

    Args:
        folder: Where they go.
    """
    draw = random.Random(0)
    devices = draw.sample([(room, device) for room in ROOMS for device in DEVICES], FACTS)
    ids = dict(zip(devices, draw.sample(range(1000, 10_000), FACTS), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for split in TEMPLATES:
        rows = _rows(split, ids)
        draw.shuffle(rows)
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _rows(split: str, ids: dict[tuple[str, str], int]) -> list[dict[str, str]]:
    """Every device in every wording, on and off."""
    return [
        {"prompt": template.format(room=room, device=device, state=state), "completion": f'{{"{state}": {number}}}'}
        for (room, device), number in ids.items()
        for template in TEMPLATES[split]
        for state in STATES
    ]
