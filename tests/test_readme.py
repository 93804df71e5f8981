"""The README is short, and its example runs as printed. Its other blocks: tests/docs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.docs.fences import fences

README = (ROOT / "README.md").read_text(encoding="utf-8")


def run_script(script: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_read_in_three_minutes() -> None:
    assert len(README.split()) <= 1300


def test_recipes_are_short() -> None:
    recipes = [block for language in ("bash", "python") for block in fences(language) if block.page == "README.md"]
    after_example = [block for block in recipes if "class Mine" not in block.text]
    assert max(len(block.text.splitlines()) for block in after_example) <= 4


def test_the_first_example_runs_as_printed(tmp_path: Path) -> None:
    block = fences("python")[0].text
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


def test_the_example_module_runs(tmp_path: Path) -> None:
    run_script(ROOT / "examples" / "own_module.py", tmp_path)
    assert list(tmp_path.rglob("adapter_model.safetensors"))


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!http|#|\.\./\.\./actions)([^)]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
