"""The pages of examples/serve name options that there are."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from pera_lightning.cli.export import export
from pera_lightning.export.servers import VLLM_RANKS
from pera_lightning.functional import expanded_rank
from tests.conftest import ROOT

PAGES = sorted((ROOT / "examples" / "serve").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path) -> None:
    commands = re.findall(r"python -m pera_lightning export (.*)", page.read_text(encoding="utf-8"))
    assert commands
    hints = get_type_hints(export)
    for command in commands:
        words = shlex.split(command)
        options = dict(zip(words[::2], words[1::2], strict=True))
        names = {name.removeprefix("--") for name in options}
        assert names <= inspect.signature(export).parameters.keys()
        assert {"adapter", "out"} <= names
        assert options.get("--to", "peft") in get_args(hints["to"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python(page: Path) -> None:
    for block in re.findall(r"```\n(from .*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(block, str(page), "exec")
        for line in block.splitlines():
            if line.startswith("from pera_lightning"):
                exec(line, {})


def test_ranks_of_vllm() -> None:
    text = (ROOT / "examples/serve/vllm.md").read_text(encoding="utf-8")
    ranks = re.search(r"\(rank (.*?)\)", text, flags=re.DOTALL)
    assert ranks is not None
    for rank, expanded, limit in re.findall(r"(\d+): (?:K = )?(\d+), (?:so )?(\d+)", ranks[1]):
        assert int(expanded) == expanded_rank(int(rank), 2)
        assert int(limit) == next(value for value in VLLM_RANKS if value >= int(expanded))
