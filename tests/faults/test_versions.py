"""Declared versions that do not work: floors nobody tested, optional packages needed by everybody, bad releases."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import DeepSpeedStrategy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from torch import nn

from pera_lightning import PeraCausalLM, quantize_model, requirements
from pera_lightning.callback.strategies.choice import strategy_of
from pera_lightning.errors import ConfigError
from pera_lightning.evaluation import lm_eval_model
from pera_lightning.export.gguf.gguf_tensors import gguf_package
from pera_lightning.export.lora.peft_loading import has_peft
from pera_lightning.injection.sharding import sharding_function
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm, load_config
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.models.optimization import make_optimizer
from pera_lightning.models.parallel.parallel_causal_lm import ParallelBuild
from tests.conftest import ROOT
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = [
    requirement
    for group in (PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    if requirement.name != "pera-lightning"
]
TOOLS = {"build", "mkdocs", "mkdocs-material", "mkdocstrings-python", "mypy", "ruff"}
"""Of developers, and not what the tests of the package run against."""
OPTIONAL = ("accelerate", "bitsandbytes", "gguf", "lm_eval", "peft", "tensorboard", "torchdata")


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def floor(requirement: Requirement) -> Version:
    return next(Version(part.version) for part in requirement.specifier if part.operator == ">=")


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_floors_are_what_the_tests_run_against(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    assert requirement.specifier.contains(pins("constraints.txt")[name])
    if name not in TOOLS:
        assert floor(requirement) == pins("constraints-lowest.txt")[name]


def test_floors_are_no_higher_than_stacks_of_the_last_year() -> None:
    limits = {"torch": "2.8", "lightning": "2.5", "transformers": "5.4", "accelerate": "1.10"}
    assert all(floor(r).release[:2] <= Version(limits[r.name]).release for r in DECLARED if r.name in limits)


@pytest.mark.skipif(os.environ.get("PERA_TEST_REQUIRE_ALL") != "1", reason="make test and make test-lowest pin them")
def test_what_is_pinned_is_installed() -> None:
    wanted = pins("constraints-lowest.txt" if os.environ.get("PERA_TEST_LOWEST") == "1" else "constraints.txt")
    found = {metadata.distribution(name).name: metadata.version(name) for name in wanted if _is_there(name)}
    assert {name: Version(Version(version).public) for name, version in found.items()} == {
        name: wanted[canonicalize_name(name)] for name in found
    }


def _is_there(name: str) -> bool:
    return any(canonicalize_name(found.name) == name for found in metadata.distributions())


def test_compromised_releases_are_excluded() -> None:
    (lightning,) = (requirement for requirement in DECLARED if requirement.name == "lightning")
    assert not any(map(lightning.specifier.contains, requirements.COMPROMISED))
    assert lightning.specifier.contains("2.6.1")
    assert lightning.specifier.contains("2.6.4")


def test_every_promised_python_is_tested() -> None:
    project, workflow = PROJECT["project"], (ROOT / ".github/workflows/test.yml").read_text()
    (matrix,) = re.findall(r"python-version: \[(.*)\]", workflow)
    tested = re.findall(r'"(3\.\d+)"', matrix)
    assert min(tested, key=Version) == "3.11"
    assert project["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    prefix = "Programming Language :: Python :: 3."
    assert [line.removeprefix(prefix[:-2]) for line in project["classifiers"] if line.startswith(prefix)] == tested
    assert "Python 3.11 or later" in (ROOT / "README.md").read_text()
    assert "make test-lowest" in workflow


def test_the_package_knows_the_floors() -> None:
    ranges = [requirement for requirement in DECLARED if requirement.name not in TOOLS]
    floors = {canonicalize_name(requirement.name): floor(requirement) for requirement in ranges}
    assert {name: floors[name] for name in requirements.OLDEST} == {
        name: Version(version) for name, version in requirements.OLDEST.items()
    }


def test_everything_imported_is_declared() -> None:
    declared = {canonicalize_name(requirement.name).replace("-", "_") for requirement in DECLARED}
    declared |= {module for package, module in requirements.MODULES.items() if package.replace("-", "_") in declared}
    # There where a user's strategy has imported it.
    of_strategies = {"deepspeed"}
    known = declared | set(sys.stdlib_module_names) | {"pera_lightning"} | of_strategies
    for path in (ROOT / "pera_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= known, path


WITHOUT_OPTIONAL = f"""
import sys
import torch.distributed.fsdp

from importlib.machinery import PathFinder

class WithoutThem(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutThem
# As torch 2.5 is.
del torch.distributed.fsdp.fully_shard
import pera_lightning
for name in pera_lightning.__all__:
    getattr(pera_lightning, name)
sys.exit(", ".join(sorted(set({OPTIONAL}) & set(sys.modules))) or 0)
"""


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_nothing_optional_is_imported_before_it_is_used() -> None:
    done = run(WITHOUT_OPTIONAL)
    assert done.returncode == 0, done.stderr


COMPROMISED = """
import sys
from importlib import metadata
version = metadata.version
metadata.version = lambda name: sys.argv[1] if name == "lightning" else version(name)
try:
    {action}
finally:
    assert "lightning" not in sys.modules
"""
ACTIONS = {
    "callback": "from pera_lightning import PeraCallback",
    "data": "import pera_lightning.data",
    "fit": "from pera_lightning.cli.main import main; sys.argv[1:] = [sys.argv[1], 'fit']; main()",
    "estimate": "from pera_lightning.cli.main import main; sys.argv[1:] = [sys.argv[1], 'estimate']; main()",
}


@pytest.mark.parametrize(("action", "version"), list(zip(ACTIONS, 2 * requirements.COMPROMISED, strict=True)))
def test_a_compromised_lightning_is_not_imported(action: str, version: str) -> None:
    done = run(COMPROMISED.format(action=ACTIONS[action]), version)
    assert done.returncode == 1
    assert f"lightning {version}, security advisory GHSA-w37p-236h-pfx3" in done.stderr
    assert "treat every password" in done.stderr
    assert ("Traceback" in done.stderr) == ("main" not in ACTIONS[action])


def test_the_adapters_alone_need_no_lightning() -> None:
    action = "import pera_lightning; pera_lightning.PeraLinear"
    assert run(COMPROMISED.format(action=action), requirements.COMPROMISED[0]).returncode == 0


def four_bit_source(folder: Path) -> Any:
    save_pretrained(folder)
    return load_causal_lm(PretrainedSource(str(folder)), quantization="nf4")


def gguf_source(folder: Path) -> PretrainedSource:
    (folder / "model.gguf").write_bytes(b"")
    return PretrainedSource(str(folder), "model.gguf")


def build(quantization: Any) -> ParallelBuild:
    def load() -> Any:
        raise AssertionError("it comes before anything is loaded")

    return ParallelBuild(load, PretrainedSource("model"), None, quantization)  # type: ignore[arg-type]


def under_deepspeed() -> Any:
    return SimpleNamespace(strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy))


FEATURES: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "quantise": ("bitsandbytes", "0.49.2", lambda _: quantize_model(nn.Sequential(nn.Linear(64, 64)), "nf4")),
    "quantised model": ("bitsandbytes", "0.43.0", lambda folder: PeraCausalLM(str(folder), quantization="int8")),
    "quantised source": ("accelerate", "1.9.0", four_bit_source),
    "8-bit optimizer": ("bitsandbytes", "0.45.5", lambda _: make_optimizer("adamw_8bit", [], 0.1)),
    "GGUF model": ("accelerate", "0.34.2", lambda folder: load_causal_lm(gguf_source(folder))),
    "GGUF tokenizer": ("gguf", "0.10.0", lambda folder: load_tokenizer(gguf_source(folder))),
    "GGUF of any kind": ("transformers", "5.5.4", lambda folder: load_config(gguf_source(folder))),
    "GGUF export": ("gguf", "0.17.1", lambda _: gguf_package()),
    "lm-eval": ("lm-eval", "0.4.9.2", lambda _: lm_eval_model(tiny_llama(), None)),  # type: ignore[arg-type]
    "DeepSpeed": ("lightning", "2.5.6", lambda _: strategy_of(under_deepspeed()).refuse(pl.LightningModule(), 0)),
    "FSDP2": ("torch", "2.5.1+cu124", lambda _: sharding_function()),
    "FSDP2 model": ("torch", "2.7.0", lambda _: build(None)),
    "FSDP2 in 4 bits": ("torch", "2.11.0", lambda _: build("nf4")),
}


def fake(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None) -> None:
    """Have a package look as if it had this version, or were not installed."""
    find_spec, found = util.find_spec, metadata.version
    module = package.replace("-", "_")
    monkeypatch.setattr(util, "find_spec", lambda name: _spec(version) if name == module else find_spec(name))
    monkeypatch.setattr(metadata, "version", lambda name: version if name == package and version else found(name))


def _spec(version: str | None) -> object:
    return None if version is None else "found"


NEWER = {
    "DeepSpeed": requirements.EXCLUDES_FROZEN,
    "FSDP2 in 4 bits": requirements.SHARDS_INTEGERS,
    "GGUF of any kind": requirements.READS_GGUF,
}
CORE = ("torch", "transformers", "lightning")  # is never missing
MISSING = [(name, missing) for name, case in FEATURES.items() for missing in (False, True)[: 1 + (case[0] not in CORE)]]


@pytest.mark.parametrize(("feature", "missing"), MISSING)
def test_a_feature_says_what_it_needs(
    feature: str, missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, version, use = FEATURES[feature]
    fake(monkeypatch, package, None if missing else version)
    with pytest.raises(ConfigError, match="needs a package that is missing or too old") as caught:
        use(tmp_path)
    text = str(caught.value)
    assert f"got:      {package} {'is not installed' if missing else version}" in text
    newest = NEWER.get(feature, requirements.OLDEST).get(package)
    assert f"expected: {package} {newest} or newer" in text
    assert re.search(
        r'fix:      pip install "(pera-lightning\[(quant|gguf|eval)\]|(torch|transformers|lightning)>=\d\.\d+\.0)"',
        text,
    )


def test_8_bit_bases_and_floating_ones_need_no_newer_torch_to_be_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "torch", "2.8.0")
    with pytest.raises(AssertionError, match="anything is loaded"):
        ParallelBuild(lambda: build("int8"), PretrainedSource("model"), None, "int8")  # type: ignore[arg-type, return-value]


def test_an_old_peft_is_no_peft_to_check_with(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "peft", "0.17.1")
    with pytest.raises(ConfigError, match=r'(?s)peft 0\.17\.1.*pip install "peft>=0\.18\.0"'):
        has_peft()
    fake(monkeypatch, "peft", None)
    assert not has_peft()


@pytest.mark.parametrize("version", ["2.8.0", "2.8.0a0+git1234", "2.13.0+cpu", "3.0", "nightly"])
def test_versions_that_will_do(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "torch", version)
    requirements.require("A feature", "torch")


def test_a_package_without_a_version_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    requirements.require("A feature", "torch")
    assert requirements.describe("torch") == "torch of an unknown version"
