"""Tokenizers of others: what they are found to do ends in an error of ours, and in time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pera_lightning import InstructionDataModule
from pera_lightning.data.blocks import tokenise_texts
from pera_lightning.errors import ConfigError, DataError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import read_tokenizer
from pera_lightning.loading.tokenizer_trial import while_tokenising
from tests.support.pretrained import character_tokenizer

Change = Callable[[dict[str, Any]], object]


def saved(folder: Path, change: Change, config: dict[str, Any] | None = None) -> Path:
    """A tokenizer's folder with something changed in its files."""
    character_tokenizer().save_pretrained(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    own = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(own | (config or {})))
    return folder


def replaced(part: str, pattern: dict[str, str], content: str, times: int) -> Change:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    inner = {"type": "Sequence", "normalizers" if part == "normalizer" else "decoders": [step] * times}
    return lambda values: values.update({part: inner})


def template(single: list[Any], ids: list[int] | None = None) -> Change:
    special = {"<bos>": {"id": "<bos>", "ids": ids, "tokens": ["<bos>"] * len(ids)}} if ids else {}
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    return lambda values: values.update(post_processor=processor)


A, BOS = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<bos>", "type_id": 0}}
BAD: dict[str, Change] = {
    "replacements": replaced("normalizer", {"String": "e"}, "ee", 24),
    "of a sign that is rare": replaced("normalizer", {"String": "ก"}, "กก", 24),
    "of nothing": replaced("normalizer", {"Regex": ""}, "e", 24),
    "of a decoder": replaced("decoder", {"String": "w"}, "w" * 100, 8),
    "many steps": replaced("normalizer", {"String": "e"}, "e", 101),
    "prepended": lambda values: values.update(normalizer={"type": "Prepend", "prepend": "x" * 1_000_000}),
    "charsmap": lambda values: values.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "no charsmap": lambda values: values.update(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
    "length 0": lambda values: values.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "sequence B": template([{"Sequence": {"id": "B", "type_id": 0}}]),
    "template of nothing": template([]),
    "an id beyond": template([BOS, A], [4294967295]),
    "many ids": template([BOS] * 1_000 + [A], [1] * 1_000),
    "no vocabulary": lambda values: values["model"].update(vocab={}),
    "no merge": lambda values: values.update(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    "no unknown piece": lambda values: values.update(
        model={"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "", "vocab": {"ab": 0}}
        | {"max_input_chars_per_word": 0}
    ),
    "prefix": lambda values: values.update(
        model={"type": "BPE", "merges": ["a éb", "a b"], "continuing_subword_prefix": "xyzé", "unk_token": "<unk>"}
        | {"vocab": {**values["model"]["vocab"], "ab": 54, "éb": 55, "aéb": 56}}
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_tokenizer_is_refused_in_time(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, BAD[name])
    start = time.monotonic()
    with pytest.raises(ConfigError, match="The tokenizer cannot be loaded"):
        read_tokenizer(PretrainedSource(str(folder)))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("length", ["x", [3], None])
def test_a_length_that_is_none(length: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, lambda values: None, {"model_max_length": length})
    try:
        assert read_tokenizer(PretrainedSource(str(folder))).model_max_length > 1_000
    except ConfigError as error:
        assert "model_max_length" in str(error)  # noqa: PT017


def test_a_large_vocabulary_hides_nothing(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["model"]["vocab"] |= {f"word{number}": number for number in range(100, 20_000)}
        values["pre_tokenizer"] = {"type": "FixedLength", "length": 1}

    folder = saved(tmp_path / "good", change)
    assert read_tokenizer(PretrainedSource(str(folder)))("a")["input_ids"]
    folder = saved(tmp_path / "bad", lambda values: (change(values), BAD["length 0"](values)))
    with pytest.raises(ConfigError, match="PanicException"):
        read_tokenizer(PretrainedSource(str(folder)))


GOOD: dict[str, Change] = {
    "as it is": lambda values: None,
    "metaspace": replaced("normalizer", {"String": " "}, "▁", 1),
    "expressions": replaced("normalizer", {"Regex": " {2,}"}, " ", 5),
    "prefix": lambda values: values.update(normalizer={"type": "Prepend", "prepend": "▁"}),
    "no token for what it does not know": lambda values: values.update(
        model={"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["<eos>", -2.0]]}
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_tokenizers_pass(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, GOOD[name])
    assert read_tokenizer(PretrainedSource(str(folder)))("a")["input_ids"]


def test_a_text_that_cannot_be_tokenised_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tokenizer", lambda values: values["model"].update(unk_token="none"))
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "what?", "completion": "a"}, {"prompt": "what?", "completion": "語"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = InstructionDataModule(str(path), tokenizer=str(folder), max_length=64)
    with pytest.raises(DataError, match="line 2: the tokenizer cannot read the text"):
        data.setup("fit")
    tokenizer = read_tokenizer(PretrainedSource(str(folder)))
    with pytest.raises(DataError, match="Texts from number 1 on"):
        list(tokenise_texts(["a", "語"], tokenizer))


def test_panics_are_told_and_other_ends_go_on(tmp_path: Path) -> None:
    import tokenizers

    folder = saved(tmp_path, BAD["length 0"])
    with pytest.raises(DataError, match="its library gave up"), while_tokenising("a row"):
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a")
    with pytest.raises(KeyboardInterrupt), while_tokenising("a row"):
        raise KeyboardInterrupt
