"""GGUF files of base models."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.files import replace_by_damaged
from tests.hostile.outcomes import Wrong
from tests.hostile.readers.adapters import IDS
from tests.hostile.readers.equations import check_close

NAME = "model.gguf"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_COUNTS = (0, 1, 3, 7, 64, 10**4, 10**6, 2**31 - 1, 2**32 - 1)


def prepare(folder: Path) -> None:
    from pera_lightning import PeraConfig, inject_adapter, save_adapter
    from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
    from tests.hostile.readers.adapters import llama
    from tests.support.gguf_files import save_gguf
    from tests.support.models import randomise_adapter

    where = folder / "llama"
    where.mkdir()
    save_gguf(llama(), where / NAME)
    model = load_causal_lm(PretrainedSource(str(where), NAME), dtype="float32")
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "down_proj"]))
    randomise_adapter(model)
    save_adapter(model, where / "adapter")


def _fields(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Name of a metadata entry -> its type, where its value begins and where it ends."""
    (count,) = struct.unpack_from("<Q", data, 16)
    place, found = 24, {}
    for _ in range(count):
        name, place = _text(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        end = _end(data, place + 4, kind)
        found[name] = (kind, place + 4, end)
        place = end
    found["(tensors)"] = (_STRING, place, len(data))
    return found


def _text(data: bytes, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    return data[place + 8 : place + 8 + length].decode(), place + 8 + length


def _end(data: bytes, place: int, kind: int) -> int:
    if kind == _STRING:
        return _text(data, place)[1]
    if kind != _ARRAY:
        return place + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    for _ in range(count):
        place = _end(data, place, inner)
    return place


def _header(random: Random, data: bytearray) -> str:
    place, size, name = random.choice(
        [(0, "I", "magic"), (4, "I", "version"), (8, "Q", "tensors"), (16, "Q", "entries")]
    )
    value = random.choice([0, 1, 2, 10**6, 2**31, 2**32 - 1] + ([2**62, 2**64 - 1] if size == "Q" else []))
    struct.pack_into(f"<{size}", data, place, value)
    return f"{name} {value}"


def _value(random: Random, data: bytearray) -> str:
    fields = _fields(bytes(data))
    numbers = [name for name, (kind, _, _) in fields.items() if kind in (4, 5, 6)]
    name = random.choice(numbers)
    kind, place, _ = fields[name]
    if kind == 6:
        value: float = random.choice([0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30])
        struct.pack_into("<f", data, place, value)
    else:
        value = random.choice(_COUNTS)
        struct.pack_into("<I", data, place, value)
    return f"{name} {value}"


def _length(random: Random, data: bytearray) -> str:
    """Of a string or an array."""
    fields = _fields(bytes(data))
    name = random.choice([name for name, (kind, _, _) in fields.items() if kind in (_STRING, _ARRAY)])
    kind, place, _ = fields[name]
    value = random.choice([0, 1, 10**6, 2**31, 2**62, 2**64 - 1])
    if random.random() < 0.5 and kind == _ARRAY:
        struct.pack_into("<I", data, place, random.choice([0, 3, 8, 9, 12, 13, 99]))
        return f"type of the entries of {name}"
    struct.pack_into("<Q", data, place + (4 if kind == _ARRAY else 0), value)
    return f"length of {name} {value}"


def _kind(random: Random, data: bytearray) -> str:
    fields = _fields(bytes(data))
    name = random.choice([name for name in fields if name != "(tensors)"])
    value = random.choice([0, 4, 6, 7, 8, 9, 10, 12, 13, 255, 2**31])
    struct.pack_into("<I", data, fields[name][1] - 4, value)
    return f"type of {name} {value}"


def _rename(random: Random, data: bytearray) -> str:
    fields = _fields(bytes(data))
    name = random.choice([name for name in fields if name != "(tensors)"])
    place = bytes(data).index(name.encode())
    data[place + random.randrange(len(name))] ^= 1
    return f"{name} renamed"


def _tensor(random: Random, data: bytearray) -> str:
    """A dimension, type or offset of a tensor."""
    place = _fields(bytes(data))["(tensors)"][1]
    (count,) = struct.unpack_from("<Q", data, 8)
    for _ in range(random.randrange(count)):
        place = _behind(bytes(data), place)
    name, inside = _text(bytes(data), place)
    (dimensions,) = struct.unpack_from("<I", data, inside)
    what = random.choice(["dimensions", "size", "type", "offset"])
    if what == "dimensions":
        struct.pack_into("<I", data, inside, random.choice([0, 1, 3, 4, 5, 2**31]))
    elif what == "size":
        struct.pack_into("<Q", data, inside + 4, random.choice([0, 1, 31, 10**6, 2**40, 2**63]))
    elif what == "type":
        struct.pack_into("<I", data, inside + 4 + 8 * dimensions, random.choice([1, 2, 8, 12, 24, 30, 39, 99, 2**31]))
    else:
        offset = random.choice([1, 32, 10**6, 2**40, 2**63])
        struct.pack_into("<Q", data, inside + 8 + 8 * dimensions, offset)
    return f"{what} of {name}"


def _behind(data: bytes, place: int) -> int:
    _, place = _text(data, place)
    (dimensions,) = struct.unpack_from("<I", data, place)
    return place + 4 + 8 * dimensions + 12


def damage(case: Case) -> str:
    path = case.given / NAME
    if case.random.random() < 0.25:
        return replace_by_damaged(case.random, path)
    data = bytearray(path.read_bytes())
    change = case.random.choice([_header, _value, _value, _length, _kind, _rename, _tensor, _tensor])
    done = change(case.random, data)
    path.write_bytes(bytes(data))
    return done


def _check(model: Any) -> None:
    with torch.no_grad():
        found = model(input_ids=IDS + 3).logits
    if not found.isfinite().all():
        raise Wrong("outputs are not finite")


def build(case: Case) -> None:
    """`PeraCausalLM` with `gguf_file`; what is accepted computes what transformers reads from the file."""
    from pera_lightning import PeraCausalLM

    module = PeraCausalLM(str(case.given), gguf_file=NAME, dtype="float32")
    module.configure_model()
    _check(module.model)
    _compare(case, module.model)


def _compare(case: Case, model: Any) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(case.given, gguf_file=NAME, dtype=torch.float32).eval()
    with torch.no_grad():
        check_close(model(input_ids=IDS + 3).logits, plain(input_ids=IDS + 3).logits)


def tokenize(case: Case) -> None:
    from pera_lightning.loading.pretrained import PretrainedSource
    from pera_lightning.loading.pretrained_tokenizer import load_tokenizer

    ids = load_tokenizer(PretrainedSource(str(case.given), NAME))("abcd")["input_ids"]
    if not all(0 <= number < 2**31 for number in ids):
        raise Wrong(f"tokens {ids}")


def merge(case: Case) -> None:
    """`export_merged_gguf` from an adapter of the good file."""
    from pera_lightning.errors import PeraError
    from pera_lightning.export.gguf.export_merged_gguf import export_merged_gguf
    from tests.hostile.outcomes import Changed

    out = case.out / "merged"
    try:
        export_merged_gguf(case.given / "adapter", out, base=str(case.given), gguf_file=NAME, compare=False)
    except PeraError:
        if out.exists():
            raise Changed("files were written") from None
        raise


def warm() -> None:
    import gguf
    import transformers.modeling_gguf_pytorch_utils

    import pera_lightning
    from tests.hostile.readers.adapters import llama

    pera_lightning.PeraCausalLM  # noqa: B018 - imported late
    llama()(input_ids=IDS)
    assert gguf
    assert transformers


GGUF = Kind(
    "GGUF file", prepare, damage, {"PeraCausalLM": build, "tokenizer": tokenize, "export_merged_gguf": merge}, 1, warm
)
