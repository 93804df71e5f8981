"""The documentation site builds without a warning and without a network, and says something about everything public."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import pera_lightning
from pera_lightning.cli.commands import TOOLS
from tests.conftest import NO_MKDOCS, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None:
        pytest.skip(NO_MKDOCS)
    folder = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    # Proxies that nobody answers at: a request would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_takes_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        taken = re.findall(
            r"<(?:link|script|img|iframe)[^>]*(?:href|src)=\"?((?:https?:)?//[^\" >]+)", page.read_text()
        )
        assert taken == [], page


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or f'href="{name}/"' in start, name


def test_every_public_name_has_its_reference(site: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (site / "reference").rglob("index.html")]
    found = {name for page in pages for name in re.findall(r'<h[23] id="(pera_lightning[\w.]*)"', page)}
    for name in pera_lightning.__all__:
        value = getattr(pera_lightning, name)
        assert {f"pera_lightning.{name}", f"{value.__module__}.{name}"} & found, name
    assert {f"pera_lightning.cli.{name}.{name}" for name in TOOLS} - found <= {
        f"pera_lightning.cli.{name}.{name}"
        for name in ("compare", "estimate")  # parsers of argparse
    }


def test_links_out_of_the_pages_lead_to_copies(site: Path) -> None:
    page = (site / "guide" / "language_models" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../repository/configs/quickstart.yaml/"' in page
    copy = (site / "repository" / "configs" / "quickstart.yaml" / "index.html").read_text(encoding="utf-8")
    assert "models/smollm2-135m-instruct" in re.sub("<[^>]*>", "", copy)


def test_the_search_knows_the_errors(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "errors/#there-is-no-such-command" in index
