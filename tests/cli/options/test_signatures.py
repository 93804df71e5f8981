"""Parameters read from source are those that Python sees."""

from __future__ import annotations

import inspect
from pathlib import Path

import lightning.pytorch as pl
import pytest

import pera_lightning
from pera_lightning.cli.commands import TOOLS
from pera_lightning.cli.options.known import DATA_MODULES, MODELS, trainer_options
from pera_lightning.cli.options.signatures import parameters
from pera_lightning.models.pretrained_module import PretrainedModule


def names_of(function: object) -> set[str]:
    return set(inspect.signature(function).parameters) - {"options"}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["PeraCallback", *DATA_MODULES])
def test_classes(name: str) -> None:
    assert set(parameters(pera_lightning._HOMES[name], name)) == names_of(getattr(pera_lightning, name))


@pytest.mark.parametrize("name", MODELS)
def test_classes_that_hand_options_on(name: str) -> None:
    both = names_of(getattr(pera_lightning, name)) | names_of(PretrainedModule)
    assert set(parameters(pera_lightning._HOMES[name], name)) == both


def test_the_trainer_of_this_version() -> None:
    found = {name.partition(".")[2] for name in trainer_options("fit", {}) if name.startswith("trainer.")}
    assert found == names_of(pl.Trainer)
    for command in ("fit", "validate", "test", "predict"):
        method = names_of(getattr(pl.Trainer, command)) & {"ckpt_path", "verbose", "weights_only", "return_predictions"}
        assert method == method & set(trainer_options(command, {}))


def test_tools() -> None:
    for name in set(TOOLS) - {"compare", "estimate"}:
        assert parameters(f"pera_lightning.cli.{name}", name), name


def test_annotations_and_defaults_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_options.py").write_text("def run(a, /, b: int = 3, *, c: 'bool' = False, **d): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert parameters("own_options", "run") == {}  # a module and no package
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "options.py").write_text("def run(a, /, b: int = 3, *, c: bool = False, **d): ...\n")
    found = parameters("own.options", "run")
    assert {name: (one.annotation, one.default) for name, one in found.items()} == {
        "a": ("", None),
        "b": ("int", "3"),
        "c": ("bool", "False"),
    }


@pytest.mark.parametrize(
    "place", [("nowhere_at_all", "x"), ("pera_lightning.nothing", "x"), ("pera_lightning.config", "x")]
)
def test_what_is_not_there_has_none(place: tuple[str, str]) -> None:
    assert parameters(*place) == {}


def test_defaults_types_and_help() -> None:
    found = parameters("pera_lightning.models.causal_lm", "PeraCausalLM")
    assert found["pretrained"].default is None
    assert found["dtype"].annotation == "Literal['auto', 'native', 'float32', 'bfloat16', 'float16']"
    assert "nf4-dq" in found["quantization"].annotation
    assert found["generate_in_test"].is_flag
    assert not found["max_new_tokens"].is_flag
    assert "Peak learning rate" in found["learning_rate"].help
    assert found["learning_rate"].default == "0.0002"
    callback = parameters(pera_lightning._HOMES["PeraCallback"], "PeraCallback")
    assert callback["target_modules"].default == "'all-linear'"
    assert all(one.help for one in callback.values())
