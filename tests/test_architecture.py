"""Dependencies between packages go one way, and importing stays cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from docs.draw_map import PICTURE, picture
from tests.conftest import ROOT

PACKAGE = ROOT / "pera_lightning"
MOST_FILES = 16
"""In a folder, beside its `__init__.py`."""
ROWS = [
    {"errors", "did_you_mean", "version", "visible_text"},
    {"config", "families", "form_bounds", "option_checks", "patterns", "requirements", "token_ids"},
    {"concurrency", "functional", "plain_table", "storage"},
    {"base_layers"},
    {"layers"},
    {"injection"},
    {"checkpoint"},
    {"loading", "run_log"},
    {"data"},
    {"models"},
    {"export"},
    {"analysis"},
    {"callback"},
    {"evaluation"},
    {"cli", "integration", "__main__"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
# Where each heavy library may appear at all.
HOMES = {"lightning": ROW_OF["run_log"], "transformers": ROW_OF["loading"], "datasets": ROW_OF["data"]}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_go_downwards(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if not name.startswith("pera_lightning."):
            continue
        other = name.split(".")[1]
        # Files of a row may need each other, wings of a row may not.
        beside = ROW_OF[other] == ROW_OF[part] and (other == part or not (PACKAGE / part).is_dir())
        assert ROW_OF[other] < ROW_OF[part] or beside, f"{part} imports {name}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_imported(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inside)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports in functions and those for types are counted as well: they would only hide a circle."""
    known = {module_of(path) for path in FILES}
    sorter = TopologicalSorter({module_of(path): set(modules_imported(path, known)) for path in FILES})
    # Raises a CycleError that names the modules.
    sorter.prepare()


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_heavy_libraries_stay_in_their_rows(path: Path) -> None:
    part = part_of(path)
    for name in imports(path):
        library = name.split(".")[0]
        if library in HOMES:
            assert ROW_OF[part] >= HOMES[library], f"{part} imports {library}"
        if library == "bitsandbytes":
            assert part == "base_layers", f"{part} imports bitsandbytes"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_files_hold_one_concept(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


def test_no_hall_of_flat_rooms() -> None:
    folders = Counter(path.parent for path in FILES if path.stem != "__init__")
    assert {identify(folder): count for folder, count in folders.items() if count > MOST_FILES} == {}


def test_a_name_has_one_job() -> None:
    """The kernels of an operation are called as it is; tools of the command line have a `command` each."""
    stems = Counter(path.stem for path in FILES if path.parent.name != "kernels")
    assert {stem for stem, count in stems.items() if count > 1} == {"__init__", "command"}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "__init__"], ids=identify)
def test_every_folder_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    for name in re.findall(r"`([a-z_]+\.py|[a-z_]+/)`", text):
        assert (path.parent / name).exists(), name
    assert path.parent in (PACKAGE, PACKAGE / "integration") or "Open " in text.replace("\n", " ")


def test_the_map_is_the_package_as_it_is() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "make docs"


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.py|[\w/]+/)`", text):
        assert any((place / name).exists() for place in (PACKAGE, ROOT)), name


def test_importing_the_package_is_cheap() -> None:
    script = (
        "import sys, pera_lightning; "
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'bitsandbytes', 'lightning', 'matplotlib'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WITHOUT_LIGHTNING = """
import sys
import torch
from pera_lightning import (
    AdapterSet, PeraConfig, adapter_disabled, inject_adapter, load_adapter, merge_adapter, parameter_groups,
    save_adapter
)

def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

model = make_model()
inject_adapter(model, PeraConfig(rank=2))
optimizer = torch.optim.AdamW(parameter_groups(model.named_parameters(), learning_rate=0.01))
x = torch.randn(4, 8)
model(x).square().mean().backward()
optimizer.step()
with adapter_disabled(model):
    assert torch.equal(model(x), make_model()(x))
trained = model(x)
save_adapter(model, sys.argv[1])
model = make_model()
adapters = AdapterSet(model)
adapters.load("one", sys.argv[1])
with adapters.using("one"):
    assert torch.equal(model(x), trained)
model = make_model()
load_adapter(model, sys.argv[1])
torch.testing.assert_close(merge_adapter(model)(x), trained)
loaded = {name.partition(".")[0] for name in sys.modules}
sys.exit(", ".join(sorted({"lightning", "pytorch_lightning", "transformers", "accelerate"} & loaded)) or 0)
"""


def test_training_saving_loading_and_merging_need_neither_lightning_nor_transformers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_LIGHTNING, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    """Type checkers read the imports, Python the table; a name comes from the same place in both."""
    import pera_lightning

    for name in pera_lightning.__all__:
        assert getattr(pera_lightning, name) is not None
    read = ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
    homes = {
        alias.name: node.module
        for node in read
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pera_lightning")
        for alias in node.names
    }
    assert homes.pop("__version__") == "pera_lightning.version"  # at once, not on first use
    assert homes == pera_lightning._HOMES
    assert sorted(homes) == sorted(pera_lightning.__all__)
    assert set(pera_lightning.__all__) <= set(dir(pera_lightning))


def test_folders_are_there_without_being_imported() -> None:
    script = "import pera_lightning; pera_lightning.layers.PeraLinear; assert not hasattr(pera_lightning, 'nothing')"
    subprocess.run([sys.executable, "-c", script], check=True)
