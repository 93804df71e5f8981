"""What a release says of itself: one version, everywhere the same."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml

from pera_lightning import __version__
from tests.conftest import ROOT


def test_the_version_is_written_in_one_place_and_told_alike() -> None:
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'attr = "pera_lightning.version.__version__"' in project
    assert __version__ not in project


def test_setuptools_reads_the_version_without_importing_anything() -> None:
    """setuptools evaluates a literal, and imports the module where it finds none."""
    found = re.findall(r'^__version__ = "([\d.]+)"', (ROOT / "pera_lightning/version.py").read_text(), re.MULTILINE)
    assert found == [__version__]


def test_the_version_is_known_without_torch() -> None:
    check = "import sys, pera_lightning; sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT, timeout=60)
