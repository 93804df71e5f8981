"""What SECURITY.md says of folders and configs from others: nothing in them is run but what the user asks for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.errors import AdapterFileError, ConfigError, PeraError
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm, load_config
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from tests.support.hostile_checkpoints import Touch
from tests.support.pretrained import save_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What hostile files make when they are run."""
    return tmp_path / "called"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def code(base: Path, mark: Path) -> None:
    """A model whose classes are in the folder itself."""
    (base / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    for name in ("config.json", "tokenizer_config.json"):
        held = json.loads((base / name).read_text())
        classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Any")
        held |= {"auto_map": {**classes, "AutoTokenizer": ["evil.Any", "evil.Any"]}}
        held |= {"model_type": "evil"} if name == "config.json" else {"tokenizer_class": "Evil"}
        (base / name).write_text(json.dumps(held))


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer, load_config])
def test_code_of_a_base_is_not_run(base: Path, mark: Path, load: Callable[[PretrainedSource], object]) -> None:
    code(base, mark)
    with pytest.raises(ConfigError):
        load(PretrainedSource(str(base)))
    assert not mark.exists()
    assert not PretrainedSource(str(base)).trust_remote_code
    with pytest.raises((PeraError, AttributeError)):
        load(PretrainedSource(str(base), trust_remote_code=True))
    # So the folder is what it is meant to be.
    assert mark.exists()


def test_a_pickle_of_a_base_is_not_run(base: Path, mark: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"a": Touch(mark)}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        load_causal_lm(PretrainedSource(str(base)))
    assert not mark.exists()


def test_of_an_adapter_only_options_and_safetensors_are_read(tmp_path: Path, mark: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    inject_adapter(model, PeraConfig(2))
    save_adapter(model, tmp_path / "adapter")
    for name in ("adapter_model.bin", "adapter_model.pt", "optimizer.pt", "training_args.bin"):
        torch.save({"a": Touch(mark)}, tmp_path / "adapter" / name)
    for name in ("conftest.py", "modeling.py", "__init__.py"):
        (tmp_path / "adapter" / name).write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    load_adapter(nn.Sequential(nn.Linear(4, 4)), tmp_path / "adapter", allow_other_base=True)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterFileError):
        load_adapter(nn.Sequential(nn.Linear(4, 4)), tmp_path / "adapter", allow_other_base=True)
    shutil.copy(tmp_path / "adapter" / "adapter_model.bin", tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError):
        load_adapter(nn.Sequential(nn.Linear(4, 4)), tmp_path / "adapter", allow_other_base=True)
    assert not mark.exists()


TAGS = ["!!python/object/apply:pathlib.Path.touch [{mark}]", "!!python/object/new:os.system ['touch {mark}']"]


@pytest.mark.parametrize("tag", TAGS)
def test_tags_of_yaml_run_nothing(tmp_path: Path, mark: Path, tag: str) -> None:
    (tmp_path / "config.yaml").write_text(f"trainer: {tag.format(mark=mark)}\n")
    with pytest.raises(ConfigError):
        parse_fit("estimate", ["--config", str(tmp_path / "config.yaml")])
    assert not mark.exists()


def test_a_config_names_classes_which_are_imported(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config is a program, and SECURITY.md says so."""
    (tmp_path / "their_module.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    (tmp_path / "config.yaml").write_text("model:\n  class_path: their_module.Model\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError):
        parse_fit("estimate", ["--config", str(tmp_path / "config.yaml")])
    sys.modules.pop("their_module", None)
    assert mark.exists()


def test_the_security_page_names_tests_that_exist() -> None:
    named = [word for word in (ROOT / "SECURITY.md").read_text("utf-8").split("`") if word.startswith("tests/")]
    assert len(named) > 10
    for name in named:
        file, _, function = name.partition("::")
        assert (ROOT / file).is_file(), name
        assert f"def {function}(" in (ROOT / file).read_text("utf-8") if function else True, name
