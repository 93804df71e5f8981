"""Damage to safetensors files, written and read by code of its own."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from tests.hostile.mutations.files import replace_by_damaged
from tests.hostile.mutations.values import damage_value, written

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BAD_NUMBERS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 70000.0, 1e-45, 0.0)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a good file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body, found = data[8 + length :], {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(body[begin:end]) or bytearray(8), dtype=DTYPES[entry["dtype"]])
            found[name] = flat[: math.prod(entry["shape"])].reshape(entry["shape"])
    return found


def write_tensors(path: Path, tensors: dict[str, Tensor], change: Callable[[Any], Any] = lambda header: None) -> None:
    """Write a file, whose header may be changed before."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, value in tensors.items():
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        body += data
    change(header)
    text = written(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _dtype(random: Random, tensors: dict[str, Tensor]) -> str:
    chosen = random.choice(sorted(DTYPES))
    names = random.choice([list(tensors), [random.choice(sorted(tensors))]])
    for name in names:
        tensors[name] = tensors[name].to(DTYPES[chosen])
    return f"{len(names)} tensors as {chosen}"


def _values(random: Random, tensors: dict[str, Tensor]) -> str:
    name, bad = random.choice(sorted(tensors)), random.choice(_BAD_NUMBERS)
    value = tensors[name] = tensors[name].clone()
    if value.numel():
        place = random.randrange(value.numel())
        value.view(-1)[place if random.random() < 0.7 else slice(None)] = bad
    return f"{bad} in {name}"


def _shape(random: Random, tensors: dict[str, Tensor]) -> str:
    name = random.choice(sorted(tensors))
    value = tensors[name]
    changes = {
        "transposed": lambda: value.t().contiguous() if value.dim() == 2 else value[None],
        "flat": lambda: value.reshape(-1),
        "a row less": lambda: value[1:],
        "a row more": lambda: torch.cat([value, value[:1]]),
        "empty": lambda: value[:0],
        "one number": lambda: value.sum(),
        "more dimensions": lambda: value[None, None],
        "doubled": lambda: torch.cat([value, value], dim=-1),
    }
    what = random.choice(sorted(changes))
    tensors[name] = changes[what]()
    return f"{name} {what}"


def _names(random: Random, tensors: dict[str, Tensor]) -> str:
    name = random.choice(sorted(tensors))
    new = random.choice([name + "x", name.upper(), "", "x", "." + name, name.rpartition(".")[2], "module." + name, "é"])
    choice = random.randrange(4)
    if choice == 0:
        tensors[new] = tensors.pop(name)
    elif choice == 1:
        tensors[new] = tensors[name].clone()
    elif choice == 2:
        del tensors[name]
    else:
        other = random.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        return f"{name} and {other} swapped"
    return f"{name} {('renamed to', 'also as', 'left out, not')[choice]} {new!r}"


def _scales(random: Random, tensors: dict[str, Tensor]) -> str:
    factor = random.choice([2.0, -1.0, 0.0, 1e-30, 1e3, 1e20])
    name = random.choice(sorted(tensors))
    tensors[name] = (tensors[name].float() * factor).to(tensors[name].dtype)
    return f"{name} times {factor}"


def _header(random: Random, path: Path, tensors: dict[str, Tensor]) -> str:
    done = []
    write_tensors(path, tensors, lambda header: done.append(damage_value(random, header)))
    return f"header: {done[0]}"


def _length(random: Random, path: Path) -> str:
    length = random.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, 100_000_001, 10**9])
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    return f"length of the header {length}"


def damage_tensors(random: Random, path: Path) -> str:
    """Damage a safetensors file; returns what was done."""
    choice = random.random()
    if choice < 0.3:
        return replace_by_damaged(random, path)
    if choice < 0.35:
        return _length(random, path)
    tensors = read_tensors(path)
    if choice < 0.5:
        return f"{path.name}: {_header(random, path, tensors)}"
    kinds = [_dtype, _values, _shape, _names, _scales]
    done = [random.choice(kinds)(random, tensors) for _ in range(random.choice([1, 1, 1, 2])) if tensors]
    write_tensors(path, tensors)
    return f"{path.name}: {'; '.join(done)}"
