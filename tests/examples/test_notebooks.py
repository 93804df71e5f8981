"""The notebooks run from top to bottom: the second, for a GPU and a model of the Hub, with a tiny model on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.pretrained import save_pretrained

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LARGE_MODEL = '"Qwen/Qwen2.5-1.5B-Instruct"'


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(name: str) -> str:
    """All code cells as one script, without the commands of IPython."""
    cells = read(ROOT / "examples" / "notebooks" / name)["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]]
    return "".join(line for line in lines if not line.startswith("%"))


def run(code: str, folder: Path) -> str:
    script = folder / "notebook.py"
    script.write_text(code, encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_whole_and_hold_no_outputs(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        code = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        assert cell == {**code, **{key: cell[key] for key in ("cell_type", "id", "metadata", "source")}}
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    told = run(code_of("own_module.ipynb"), tmp_path)
    assert "the same outputs: True" in told
    before, after = [line for line in told.splitlines() if line.startswith("{'old'")]
    assert json.loads(before.replace("'", '"'))["new"] < 0.6
    assert json.loads(after.replace("'", '"'))["new"] > 0.8
    assert (tmp_path / "lora_of_rank_8").is_dir()
    assert (tmp_path / "merged.pt").is_file()


def test_a_model_in_4_bits(tmp_path: Path) -> None:
    code = code_of("qpera_1b.ipynb")
    assert code.count(LARGE_MODEL) == 1
    told = run(code.replace(LARGE_MODEL, repr(save_pretrained(tmp_path / "tiny"))), tmp_path)
    assert "test_exact_match" in told
    assert "july 14 in 2031 ->" in told
    assert (tmp_path / "merged" / "model.safetensors").is_file()
