"""GGUF files that are damaged, or that say of themselves what cannot be: ours error, soon, without their memory."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy
import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ConfigError, ExportError, PeraError
from pera_lightning.export.gguf.gguf_tensors import decoded
from pera_lightning.export.gguf.gguf_writing import write_merged_gguf
from pera_lightning.export.lora.plain_lora import PeraTensors, plain_lora
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm, load_config
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.storage.gguf_header import GgufDamage, read_header
from tests.support.gguf_files import reads_gguf, save_gguf
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.tiny_gguf import write_base_gguf

HUGE = (0, 1, 3, 63, 65, 10**6, 10**9, 2**31, 2**32 - 1)
SIZES = ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv"]
SIZES += ["vocab_size", "rope.dimension_count"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny Llama with a tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    save_gguf(tiny_llama(), path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def bounded() -> Any:
    start = time.process_time()
    yield
    assert time.process_time() - start < 15


def put(content: bytes, at: int, kind: str, value: int) -> bytes:
    return content[:at] + struct.pack("<" + kind, value) + content[at + struct.calcsize("<" + kind) :]


def behind(content: bytes, text: bytes) -> int:
    assert content.count(struct.pack("<Q", len(text)) + text) == 1
    return content.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)


def field(key: str, kind: str, value: float) -> Callable[[bytes], bytes]:
    """Another value of a field of numbers."""
    return lambda content: put(content, behind(content, key.encode()) + 4, kind, value)  # type: ignore[arg-type]


TOKENS = b"tokenizer.ggml.tokens"
WEIGHT = b"blk.0.attn_q.weight"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "not GGUF": (lambda content: b"GGML" + content[4:], "does not begin with GGUF"),
    "empty": (lambda content: b"", "fewer than a header"),
    "version": (lambda content: put(content, 4, "I", 9), "version 9"),
    "tensor count": (lambda content: put(content, 8, "Q", 2**60), "more than fit"),
    "field count": (lambda content: put(content, 16, "Q", 2**60), "more than fit"),
    "one field more": (lambda content: put(content, 16, "Q", 17), "."),
    "key length": (lambda content: put(content, 24, "Q", 2**63), "are to follow"),
    "type": (lambda content: put(content, behind(content, b"llama.block_count"), "I", 77), "unknown type 77"),
    "array type": (lambda content: put(content, behind(content, TOKENS) + 4, "I", 9), "unknown type 9"),
    "array count": (lambda content: put(content, behind(content, TOKENS) + 8, "Q", 2**61), "more than any vocabulary"),
    "array count of a kind": (lambda c: put(c, behind(c, TOKENS) + 8, "Q", 1_000_000), "more than fit"),
    "text in an array": (lambda content: put(content, behind(content, TOKENS) + 16, "Q", 2**40), "are to follow"),
    "blocks": (field("llama.block_count", "I", 1_000_000), "at most 2"),
    "no blocks": (field("llama.block_count", "I", 0), "block_count"),
    "heads": (field("llama.attention.head_count", "I", 0), "head_count"),
    "width": (field("llama.embedding_length", "I", 2**31), "the tensors have at most"),
    "dimensions": (lambda content: put(content, behind(content, WEIGHT), "I", 2**30), "dimensions"),
    "dimension": (lambda content: put(content, behind(content, WEIGHT) + 4, "Q", 2**62), "ends at byte"),
    "empty tensor": (lambda content: put(content, behind(content, WEIGHT) + 4, "Q", 0), "is empty"),
    "tensor type": (lambda content: put(content, behind(content, WEIGHT) + 20, "I", 4_000), "unknown type 4000"),
    "tensor blocks": (lambda content: put(content, behind(content, WEIGHT) + 20, "I", 14), "whole blocks"),
    "offset": (lambda content: put(content, behind(content, WEIGHT) + 24, "Q", 2**62), "ends at byte"),
    "tensors one over the other": (lambda c: put(c, behind(c, WEIGHT) + 24, "Q", 0), "within another"),
    "twice": (lambda content: content.replace(b"blk.0.attn_k", b"blk.0.attn_q"), "comes twice"),
    "no text": (lambda content: content.replace(b"llama.block_count", b"llama.block\xffcount"), "no UTF-8"),
    "not a number": (field("llama.attention.layer_norm_rms_epsilon", "f", float("nan")), "not finite"),
}


@reads_gguf
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, whole: bytes, tmp_path: Path) -> None:
    change, words = DAMAGE[name]
    content = change(whole)
    assert content != whole
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(GgufDamage, match=words):
        read_header(tmp_path / "base.gguf")
    source = PretrainedSource(str(tmp_path), "base.gguf")
    for load in (load_tokenizer, load_config, load_causal_lm):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load(source)


@reads_gguf
def test_weights_that_are_not_finite(whole: bytes, tmp_path: Path) -> None:
    """The last bytes are those of a tensor."""
    (tmp_path / "base.gguf").write_bytes(whole[:-8] + struct.pack("<2f", float("nan"), float("inf")))
    with pytest.raises(ConfigError, match=r"values of .* are not finite when its blocks are unpacked"):
        load_causal_lm(PretrainedSource(str(tmp_path), "base.gguf"))


def test_a_type_that_cannot_be_unpacked() -> None:
    data = numpy.zeros(4, dtype=numpy.int8)
    tensor = SimpleNamespace(name="blk.0", data=data, tensor_type=gguf.GGMLQuantizationType.I8)
    with pytest.raises(ExportError, match=r"does not unpack(.|\n)*'blk\.0'"):
        decoded(tensor)


def test_alignment_and_parts(tmp_path: Path) -> None:
    write_base_gguf(tiny_llama(), tmp_path / "base.gguf", alignment=256)
    content = (tmp_path / "base.gguf").read_bytes()
    assert read_header(tmp_path / "base.gguf").fields["general.alignment"] == 256
    for alignment in (0, 3, 2**31):
        (tmp_path / "other.gguf").write_bytes(field("general.alignment", "I", alignment)(content))
        with pytest.raises(GgufDamage, match=f"alignment is {alignment}"):
            read_header(tmp_path / "other.gguf")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GgufDamage, match="one of several files"):
        read_header(tmp_path / "part.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GgufDamage, match="no regular file"):
        read_header(tmp_path / "pipe.gguf")


@reads_gguf
def test_the_header_says_what_is_in_the_file(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(whole)
    header, reader = read_header(tmp_path / "base.gguf"), gguf.GGUFReader(tmp_path / "base.gguf")
    assert header.shapes == {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
    assert header.elements == sum(tensor.n_elements for tensor in reader.tensors)
    fields = {name: entry.contents() for name, entry in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields.keys() == header.fields.keys()
    for name, value in fields.items():
        texts = isinstance(value, list) and isinstance(value[0], str)
        assert header.fields[name] == (len(value) if texts else value)


def mutated(content: bytes, seed: int) -> bytes:
    """A file with a flipped bit, a piece missing, or other counts, mostly in its header."""
    choice = random.Random(seed)
    for _ in range(choice.choice([1, 1, 2, 4])):
        at = choice.randrange(min(5_000, len(content) - 8))
        kind = choice.randrange(6)
        if kind == 0:
            content = put(content, at, "B", content[at] ^ 1 << choice.randrange(8))
        elif kind == 1:
            content = content[: choice.randrange(16, len(content))]
        elif kind == 2:
            content = put(content, at, "Q", choice.choice([*HUGE, 2**60, 2**63, 2**64 - 1]))
        elif kind == 3:
            content = put(content, at, "I", choice.choice(HUGE))
        elif kind == 4:
            content = content[:at] + content[at + choice.randrange(1, 40) :]
        else:
            key = choice.choice([f"llama.{name}" for name in (*SIZES, "context_length")]).encode()
            at = content.find(key)
            content = content if at < 0 else put(content, at + len(key) + 4, "I", choice.choice(HUGE))
        if len(content) < 64:
            break
    return content


@reads_gguf
@pytest.mark.parametrize("first", range(0, 24, 12))
def test_mutations_load_or_are_refused(first: int, whole: bytes, tmp_path: Path) -> None:
    refused = 0
    for seed in range(first, first + 12):
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(mutated(whole, seed))
        source = PretrainedSource(str(tmp_path), path.name)
        try:
            load_tokenizer(source)
            model = load_causal_lm(source, dtype="float32")
        except PeraError:
            refused += 1
        else:
            assert model(torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)
            assert sum(value.numel() for value in model.parameters()) < 1e6
    assert refused > 3


def test_mutations_are_merged_into_or_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    model = tiny_llama()
    write_base_gguf(model, base)
    content = base.read_bytes()
    inject_adapter(model, PeraConfig(rank=2, target_modules=["q_proj", "up_proj"]))
    randomise_adapter(model)
    lora, refused = plain_lora(PeraTensors.of(model)), 0
    for seed in range(30):
        other = tmp_path / f"{seed}.gguf"
        other.write_bytes(mutated(content, seed))
        try:
            write_merged_gguf(lora, other, tmp_path / "merged.gguf")
        except ExportError:
            refused += 1
            assert not (tmp_path / "merged.gguf").exists()
        else:
            read_header(tmp_path / "merged.gguf")
            (tmp_path / "merged.gguf").unlink()
    assert 5 < refused < 30
