"""Damage to files whatever is in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random


def damage_bytes(random: Random, data: bytes) -> bytes:
    """Flip bits, cut, insert, overwrite or double a part."""
    if not data:
        return b"\0"
    place = random.randrange(len(data))
    length = random.choice([1, 4, 8, 64, 4096])
    changed = bytearray(data)
    choice = random.randrange(7)
    if choice <= 1:
        for _ in range(random.choice([1, 1, 2, 8])):
            changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif choice == 2:
        del changed[place:]
    elif choice == 3:
        changed[place:place] = random.randbytes(length)
    elif choice == 4:
        changed[place : place + length] = random.choice([b"\0", b"\xff", b"\x80"]) * len(
            changed[place : place + length]
        )
    elif choice == 5:
        del changed[place : place + length]
    else:
        changed[place:place] = changed[max(0, place - length) : place]
    return bytes(changed)


def damage_file(random: Random, path: Path) -> str:
    """Put something else in the place of a file; returns what."""
    what = random.choice(["folder", "pipe", "link to nothing", "link to itself", "nothing", "empty", "link to zeros"])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to nothing":
        path.symlink_to("nowhere")
    elif what == "link to itself":
        path.symlink_to(path.name)
    elif what == "empty":
        path.touch()
    elif what == "link to zeros":
        path.symlink_to("/dev/zero")
    return f"{path.name}: {what}"


def replace_by_damaged(random: Random, path: Path) -> str:
    """Damage the bytes of a file, once or a few times, or put something else in its place."""
    if random.random() < 0.08:
        return damage_file(random, path)
    data = path.read_bytes()
    for _ in range(random.choice([1, 1, 1, 3])):
        data = damage_bytes(random, data)
    path.write_bytes(data)
    return f"{path.name}: bytes"


def swap_files(one: Path, other: Path) -> None:
    """Put the file of another folder in the place of one."""
    one.unlink()
    shutil.copy(other, one)
