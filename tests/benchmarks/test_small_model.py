"""The small language model of the study."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.quality.small_model import write_small_model


def test_it_is_written_once_and_has_learned(tmp_path: Path) -> None:
    plays = "\n".join(f"ANTONIO: line {number}, été" for number in range(400))
    articles = "\n".join(f"= Article {number} =" for number in range(2000))
    for name, text in {"text/tinyshakespeare.txt": plays, "wikitext2/train.txt": articles}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    folder = tmp_path / "small_model"
    write_small_model(tmp_path, folder, steps=3)
    parts = [(folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "val", "test")]
    assert "".join(parts) == plays
    assert [round(len(part) / len(plays), 2) for part in parts] == [0.9, 0.05, 0.05]

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    ids = tokenizer("= été =", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, len("= été =".encode()))
    assert tokenizer.decode(ids[0]) == "= été ="
    start, base = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("start", "base"))
    ids = tokenizer(articles[:120], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert base(ids, labels=ids).loss < start(ids, labels=ids).loss - 0.1

    written = (folder / "base/model.safetensors").stat().st_mtime_ns
    write_small_model(tmp_path, folder, steps=3)
    assert (folder / "base/model.safetensors").stat().st_mtime_ns == written
