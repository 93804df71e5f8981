"""Every strategy in configs/strategies goes with every recipe; what cannot work is refused before anything loads."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch import nn

from pera_lightning import PeraCallback, PeraCausalLM
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.errors import ConfigError
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
from pera_lightning.requirements import EXCLUDES_FROZEN, is_outdated
from tests.conftest import OLD_DEEPSPEED, ROOT
from tests.recipes.test_configs import CONFIGS, identify, read
from tests.support.models import Regressor
from tests.support.quantized_fit import Net

for_deepspeed = pytest.mark.skipif(is_outdated("lightning", EXCLUDES_FROZEN), reason=OLD_DEEPSPEED)
STRATEGIES = sorted((ROOT / "configs" / "strategies").glob("*.yaml"))
KINDS = {
    "ddp": DDPStrategy,
    "ddp_bf16": DDPStrategy,
    "ddp_gloo_cpu": DDPStrategy,
    "deepspeed_zero2": DeepSpeedStrategy,
    "fsdp": FSDPStrategy,
    "fsdp2": FSDP2Strategy,
    "tensor_parallel": FSDP2Strategy,
    "tensor_parallel_fsdp2": FSDP2Strategy,
}


SUPPORTED = [pytest.param(path, marks=for_deepspeed) if path.stem == "deepspeed_zero2" else path for path in STRATEGIES]


class Declared(DeepSpeedStrategy):
    """As DeepSpeedStrategy says of itself, without the library."""

    def __init__(self, *, stage: int = 2, exclude_frozen_parameters: bool = False) -> None:
        self.config = {"zero_optimization": {"stage": stage}}
        self.exclude_frozen_parameters = exclude_frozen_parameters


def options_of(path: Path) -> dict[str, Any]:
    return read(path)["trainer"]["strategy"].get("init_args", {})


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def set_up(strategy: Strategy, module: pl.LightningModule, **options: Any) -> None:
    places: dict[str, Any] = {"default_root_dir": ".", "checkpoint_callbacks": [], "loggers": []}
    trainer: Any = SimpleNamespace(strategy=strategy, callbacks=[], **places)
    trainer._checkpoint_connector = _CheckpointConnector(trainer)
    callback = PeraCallback(**options)
    callback.setup(trainer, module, "fit")
    callback.teardown(trainer, module, "fit")


def test_every_strategy_is_known_here() -> None:
    assert {path.stem for path in STRATEGIES} == set(KINDS)


@pytest.mark.parametrize("path", SUPPORTED, ids=identify)
def test_goes_with_every_recipe(path: Path) -> None:
    chosen = read(path)["trainer"]
    for recipe in CONFIGS:
        parsed = parse_fit("estimate", ["--config", str(recipe), "--config", str(path)])
        assert imported(parsed.trainer.strategy.class_path) is KINDS[path.stem]
        assert {name: parsed.trainer[name] for name in ("accelerator", "devices")} == {
            "accelerator": chosen["accelerator"],
            "devices": chosen["devices"],
        }
        # What a recipe chooses stays as it is.
        assert parsed.trainer.max_epochs == read(recipe)["trainer"]["max_epochs"]


@pytest.mark.parametrize("path", SUPPORTED, ids=identify)
def test_options_are_those_of_lightning(path: Path) -> None:
    kind, options = KINDS[path.stem], options_of(path)
    assert options.keys() <= inspect.signature(kind.__init__).parameters.keys()
    if kind is not DeepSpeedStrategy:
        hook = options.pop("ddp_comm_hook", None)
        kind(**options, **({"ddp_comm_hook": imported(hook)} if hook else {}))


@pytest.mark.parametrize("path", STRATEGIES, ids=identify)
def test_header_says_how_to_launch_what_it_needs_and_what_is_saved(path: Path) -> None:
    header, _, _ = path.read_text(encoding="utf-8").partition("\ntrainer:")
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"--config configs/strategies/{path.name}" in header
    assert "Needs: " in header
    assert "Saved: " in header


def test_runs_in_as_many_processes_as_the_file_says() -> None:
    chosen = read(ROOT / "configs" / "strategies" / "ddp_gloo_cpu.yaml")["trainer"]
    strategy = DDPStrategy(**chosen["strategy"]["init_args"])
    trainer = pl.Trainer(accelerator=chosen["accelerator"], devices=chosen["devices"], strategy=strategy, logger=False)
    assert trainer.world_size == 2
    assert strategy.process_group_backend == "gloo"


@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        (FSDPStrategy(use_orig_params=False), "FSDPStrategy with use_orig_params=False"),
        (FSDPStrategy(state_dict_type="sharded"), "FSDPStrategy with state_dict_type='sharded'"),
        (FSDPStrategy(ignored_modules=[nn.Linear(2, 2)]), "FSDPStrategy with ignored_modules"),
        pytest.param(
            *(Declared(stage=3, exclude_frozen_parameters=True), "stage 3 leaves layers without their weights"),
            marks=for_deepspeed,
        ),
        pytest.param(Declared(stage=2), "checkpoints would hold the frozen base", marks=for_deepspeed),
    ],
)
def test_impossible_strategies_are_refused(strategy: Strategy, what: str) -> None:
    module = Regressor("configure_model")
    with pytest.raises(ConfigError, match=what) as caught:
        set_up(strategy, module)
    assert "configs/strategies/" in str(caught.value)
    assert module.net is None
    # Nothing is left in the way of a later run.
    assert not {"setup", "configure_model"} & vars(module).keys()


@for_deepspeed
def test_a_start_of_order_1_is_refused_under_deepspeed() -> None:
    with pytest.raises(ConfigError, match="cannot be held back") as caught:
        set_up(Declared(exclude_frozen_parameters=True), Regressor(), polynomial_start_step=3)
    assert "polynomial_start_step=3" in str(caught.value)


@pytest.mark.parametrize("strategy", [Declared(exclude_frozen_parameters=True), FSDPStrategy()])
@pytest.mark.parametrize("build", ["option", "module"])
def test_a_quantised_base_is_refused(build: str, strategy: Strategy) -> None:
    module: pl.LightningModule = PeraCausalLM("nowhere", quantization="nf4-dq") if build == "option" else Net()
    if build == "module":
        module.configure_model()
    with pytest.raises(ConfigError, match="not supported over a quantised base") as caught:
        set_up(strategy, module)
    assert "nf4-dq" in str(caught.value)


@pytest.mark.parametrize(
    "strategy",
    [
        SingleDeviceStrategy(),
        DDPStrategy(),
        FSDPStrategy(**options_of(ROOT / "configs" / "strategies" / "fsdp.yaml")),
        FSDPStrategy(auto_wrap_policy={nn.Sequential}, cpu_offload=True),
        ModelParallelStrategy(),
        pytest.param(
            Declared(**options_of(ROOT / "configs" / "strategies" / "deepspeed_zero2.yaml")), marks=for_deepspeed
        ),
    ],
)
def test_possible_strategies_are_not_refused(strategy: Strategy) -> None:
    module = Regressor()
    set_up(strategy, module)
