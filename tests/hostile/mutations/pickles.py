"""Damage to what `torch.save` writes: archives, the pickle inside, and the objects that it makes."""

from __future__ import annotations

import builtins
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.hostile.mutations.files import damage_bytes, replace_by_damaged
from tests.hostile.mutations.values import hostile_value

_NUMBERS = (float("nan"), float("inf"), 1e30, 70000.0)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path, how: str) -> None:
        self.canary, self.how = str(canary), how

    def __reduce__(self) -> Any:
        if self.how == "eval":
            return eval, (f"open({self.canary!r}, 'w')",)
        if self.how == "exec":
            return exec, (f"import os; os.mknod({self.canary!r})",)
        if self.how == "getattr":
            return getattr(builtins, "open"), (self.canary, "w")  # noqa: B009 - as an attacker writes it
        if self.how == "path":
            return Path.touch, (Path(self.canary),)
        return io.open, (self.canary, "w")


_WAYS = ("eval", "exec", "getattr", "path", "open")


def evil_opcodes(random: Random, canary: Path) -> bytes:
    """Opcodes that call something and leave nothing on the stack."""
    name = str(canary)
    return random.choice(
        [
            f"cbuiltins\nopen\n(V{name}\nVw\ntR0".encode(),
            f"cos\nsystem\n(Vtouch {name}\ntR0".encode(),
            f"(cos\nsystem\nVtouch {name}\no0".encode(),
            f"(Vtouch {name}\nios\nsystem\n0".encode(),
            f"cposix\nsystem\n(Vtouch {name}\ntR0".encode(),
            f"c__builtin__\neval\n(Vopen('{name}', 'w')\ntR0".encode(),
        ]
    )


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _pickle_name(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("data.pkl"))


def _evil_pickle(random: Random, path: Path, canary: Path) -> str:
    members = _members(path)
    name = _pickle_name(members)
    data = members[name]
    # Behind the opcode of the protocol; or in place of all.
    evil = evil_opcodes(random, canary)
    members[name] = data[:2] + evil + data[2:] if random.random() < 0.7 else data[:2] + evil + b"}."
    _write(path, members)
    return "opcodes that call something"


def _evil_object(random: Random, path: Path, canary: Path) -> str:
    held = torch.load(path, weights_only=False)
    evil = Runs(canary, random.choice(_WAYS))
    place = random.choice(["hyper_parameters", "callbacks", "state_dict", "epoch", "pytorch-lightning_version", "x"])
    inner = held.get(place)
    if isinstance(inner, dict) and random.random() < 0.7:
        inner[random.choice([*inner, "x"]) if random.random() < 0.5 else "x"] = evil
    else:
        held[place] = evil
    torch.save(held, path, _use_new_zipfile_serialization=random.random() < 0.7)
    return f"an object that calls {evil.how} in {place}"


def _bare_pickle(random: Random, path: Path, canary: Path) -> str:
    path.write_bytes(
        pickle.dumps(random.choice([Runs(canary, "open"), {"state_dict": Runs(canary, "eval")}, [1], {}, None, "x"]))
    )
    return "a pickle and no archive"


def _member(random: Random, path: Path, canary: Path) -> str:
    members = _members(path)
    name = random.choice([_pickle_name(members), random.choice(sorted(members))])
    choice = random.randrange(5)
    if choice == 0:
        del members[name]
    elif choice <= 2:
        members[name] = damage_bytes(random, members[name])
    elif choice == 3:
        other = random.choice(sorted(members))
        members[name], members[other] = members[other], members[name]
    else:
        members["archive/constants.pkl"] = pickle.dumps(())
    _write(path, members)
    return f"{name} {('left out', 'damaged', 'damaged', 'swapped', 'with a program')[choice]}"


def _bomb(random: Random, path: Path, canary: Path) -> str:
    members = _members(path)
    storage = random.choice(sorted(name for name in members if "/data/" in name))
    members[storage] = bytes(400 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return f"{storage} of 400 MB, compressed"


def _nested(random: Random, path: Path, canary: Path) -> str:
    members = _members(path)
    name = _pickle_name(members)
    count = random.choice([1000, 200_000])
    members[name] = b"\x80\x02" + b"(" * count + b"t" * count + b"."
    _write(path, members)
    return f"{count} tuples in each other"


def _objects(random: Random, path: Path, canary: Path) -> str:
    held = torch.load(path, weights_only=False)
    done = [damage_objects(random, held) for _ in range(random.choice([1, 1, 2]))]
    torch.save(held, path, _use_new_zipfile_serialization=random.random() < 0.9)
    return "; ".join(done)


def damage_objects(random: Random, held: dict[str, Any]) -> str:
    """Change a value, a tensor or a key somewhere in what a checkpoint holds."""
    container: Any = held
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        if not keys:
            return "nothing"
        key = random.choice(keys)
        inner = container[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.25:
            break
        container = inner
    choice = random.random()
    if choice < 0.2:
        del container[key]
        return f"without {key!r}"
    if choice < 0.3 and isinstance(container, dict):
        container[random.choice([f"{key}x", "", 5, "state_dict"])] = container.pop(key)
        return f"{key!r} renamed"
    container[key] = damaged_tensor(random, inner) if isinstance(inner, Tensor) else hostile_value(random, inner)
    return f"{key!r} -> {repr(container[key])[:60]}"


def damaged_tensor(random: Random, value: Tensor) -> Any:
    """Another dtype, shape, number or kind of tensor."""
    kinds: list[Callable[[Tensor], Any]] = [
        lambda value: value.double(),
        lambda value: value.to(torch.int32),
        lambda value: value.bool(),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.float8_e4m3fn),
        lambda value: value * 0 + random.choice(_NUMBERS),
        lambda value: value[None],
        lambda value: value.reshape(-1)[:-1],
        lambda value: value.flatten()[:0],
        lambda value: value.to_sparse() if value.dim() == 2 else value[None],
        lambda value: torch.empty(10**9, 10**3, device="meta"),
        lambda value: torch.zeros(1).expand(*[1000 for _ in value.shape], 1),
        lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        lambda value: value.tolist(),
        lambda value: value.numpy(),
        lambda value: -value,
    ]
    return random.choice(kinds)(value.detach())


def damage_checkpoint(random: Random, path: Path, canary: Path) -> str:
    """Damage a file of `torch.save`; `canary` is a file that code from it would make."""
    ways = [_evil_pickle, _evil_object, _bare_pickle, _member, _objects, _bomb, _nested]
    way = random.choices([replace_by_damaged, *ways], [8, 4, 4, 1, 6, 14, 1, 1])[0]
    done = replace_by_damaged(random, path) if way is replace_by_damaged else way(random, path, canary)
    return f"{path.name}: {done}"
