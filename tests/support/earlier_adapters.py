"""Adapter folders as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path


def forget_checksums(folder: Path) -> Path:
    """Take the checksums out of an adapter's config, after which its files can be changed; the folder."""
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    assert values.pop("checksums").keys() == {"config", "weights"}
    path.write_text(json.dumps(values))
    return folder
