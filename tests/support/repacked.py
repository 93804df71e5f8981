"""Files of `torch.save` taken apart and put together in another way."""

from __future__ import annotations

import zipfile
from pathlib import Path


def parts_of(path: Path) -> dict[str, bytes]:
    """The parts of an archive by their names, in their order."""
    with zipfile.ZipFile(path) as archive:
        return {part.filename: archive.read(part) for part in archive.infolist()}


def write_parts(path: Path, parts: dict[str, bytes], *, compressed: bool = False) -> None:
    """An archive of parts."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, held in parts.items():
            archive.writestr(name, held)


def with_pickle(path: Path, pickled: bytes, name: str = "data.pkl") -> None:
    """Another pickle in place of that of an archive, which gets a name of its own."""
    parts = parts_of(path)
    held = {
        key.replace("data.pkl", name): pickled if key.endswith("/data.pkl") else part for key, part in parts.items()
    }
    write_parts(path, held)


def endless_key(depth: int = 40) -> bytes:
    """A pickle of a dict whose key would take years to hash: a tuple of twice the one below it, and so on."""
    doubled = b"".join(b"q%ch%c\x86" % (number, number) for number in range(depth))
    return b"\x80\x02}(K\x01" + doubled + b"K\x01u."
