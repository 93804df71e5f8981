"""Model cards hold values that come from files: PyYAML, markdown-it and Python's parser read back what was written."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.checkpoint import Manifest, manifest_of
from pera_lightning.checkpoint.model_card import model_card
from pera_lightning.export import export_lora
from pera_lightning.storage.card_text import in_header, in_markdown
from pera_lightning.visible_text import visible

HOSTILE = [
    "a/b",
    "x/y\n---\n",
    "x/y\n---\nlicense: mit",
    "x/'y'",
    'x/"y"',
    "x/y: z",
    "x/y # z",
    "!!python/object/apply:os.system ['touch /tmp/x']",
    "&a/b",
    "*a/b",
    "%a/b",
    "@a/b",
    "{a/b: c}",
    "[a/b]",
    "- a/b",
    "? a/b",
    "a/b\\",
    "a/" + "b" * 10_000,
    "a/b | c | d",
    "a/b \\| c",
    "a/`b`",
    "```\na/b",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>/",
    "[a](http://x/)",
    "![a](http://x/)",
    "a/b\r\nc",
    "a/\u2028b\u2029\u0085c",
    "a/\x1b[31m\x07\x7f\u202e",
    "  a/b  ",
    "2026-01-01/1",
    "null/~",
    "a/$b$",
    "a/*b* _c_ **d**",
    "a/&amp;&#124;",
    "日本/語",
    "\U0001f469\u200d\U0001f52c/x",
    "a/b\ud800",
]
HUBS = re.compile(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))")
"""How huggingface_hub finds the header of a card."""


def random_texts(count: int) -> Iterator[str]:
    choose = random.Random(0)
    alphabet = "ab/|`<>[]()*_!&#\\\"'\n\r\t:-%@{}?,. \x00\x1b\x85\u2028\u202e\ud800é日\U0001f600"
    for _ in range(count):
        yield "".join(choose.choice(alphabet) for _ in range(choose.randrange(1, 30)))


def manifest(base: str, architecture: str | None = None) -> Manifest:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    return replace(manifest_of(model, base), base_model=base, architecture=architecture)


def header_of(card: str) -> dict[str, Any]:
    found = HUBS.match(card)
    assert found is not None
    held: dict[str, Any] = yaml.safe_load(found[2])
    return held


def cells_of(card: str) -> list[tuple[str, ...]]:
    """The rows of the only table in a card, as the Markdown library reads them: plain text, and nothing else."""
    tokens = MarkdownIt("commonmark").enable("table").parse(HUBS.sub("", card))
    assert sum(token.type == "table_open" for token in tokens) == 1
    cells = [tokens[at + 1].children or [] for at, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    for parts in cells:
        assert {part.type for part in parts} <= {"text", "text_special"}, parts
    texts = ["".join(part.content for part in parts) for parts in cells]
    return list(zip(texts[::2], texts[1::2], strict=True))


def literal_of(card: str) -> list[str]:
    """The texts in the card's Python code."""
    code = card.split("```python\n")[1].split("\n```")[0]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [part.value for call in calls for part in call.args if isinstance(part, ast.Constant)]


@pytest.mark.parametrize("base", HOSTILE, ids=ascii)
def test_cards_read_back_as_they_were_meant(base: str) -> None:
    for architecture in (None, "BertForSequenceClassification"):
        card = model_card(manifest(base, architecture), 3, {f"row {base}": base})
        card.encode("utf-8")
        header = header_of(card)
        assert header.keys() <= {"library_name", "tags", "base_model"}
        assert header["tags"] == ["pera", "adapter"]
        if "/" in base and not base.startswith((".", "/")):
            assert header["base_model"] == base
        rows = dict(cells_of(card))
        assert rows["base model"] == rows[visible(f"row {base}").strip()] == visible(base).strip()
        if architecture is not None:
            assert base in literal_of(card)


def test_thousands_of_random_values_read_back() -> None:
    for text in random_texts(3000):
        lines = in_header({"a": "b", "base_model": text, "tags": [text, "x"]})
        assert header_of("\n".join(lines)) == {"a": "b", "base_model": text, "tags": [text, "x"]}
        line = f"| a | b |\n|---|---|\n| {in_markdown(text)} | {in_markdown(text)} |"
        [_, row] = cells_of(f"---\na: b\n---\n{line}")
        assert row == (visible(text).strip(), visible(text).strip())


@pytest.mark.parametrize("base", [base for base in HOSTILE if "\ud800" not in base and len(base) < 100], ids=ascii)
def test_cards_of_exports_read_back(tmp_path: Path, base: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    model.base_model_name = base  # type: ignore[assignment]
    export_lora(model, tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text("utf-8")
    assert header_of(card).keys() <= {"library_name", "tags", "base_model"}
    assert "this folder" in literal_of(card)
