"""configs/strategies/fsdp2.yaml as the command line runs it, and the sizes of its strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from pera_lightning.errors import ConfigError
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
from tests.cli.test_main import run
from tests.conftest import ROOT
from tests.support.pretrained import save_pretrained


@pytest.mark.parametrize(
    ("machines", "devices", "data", "tensor", "expected"),
    [
        (1, 8, "auto", 1, (8, 1)),
        (2, 8, "auto", 1, (16, 1)),
        (2, 8, "auto", 2, (8, 2)),
        (2, 8, "auto", "auto", (2, 8)),
        (1, 4, 2, 2, (2, 2)),
    ],
)
def test_takes_all_devices(
    machines: int, devices: int, data: int, tensor: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    strategy = FSDP2Strategy(data, tensor)
    strategy.num_nodes, strategy.parallel_devices = machines, [torch.device("cpu")] * devices
    strategy.setup_environment()
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == expected


@pytest.mark.parametrize(("data", "tensor"), [("auto", 3), (4, 1), (2, 2), ("auto", 4)])
def test_sizes_that_do_not_make_up_the_processes(data: int, tensor: int) -> None:
    strategy = FSDP2Strategy(data, tensor)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    with pytest.raises(ConfigError, match="for 2 processes"):
        strategy.setup_environment()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows and a config."""
    folder = tmp_path_factory.mktemp("fsdp2")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("a", "b", "c", "d") * 2]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "seed_everything": 0,
        "trainer": {"max_steps": 2, "num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False},
        "pera": {"rank": 2, "adapter_dir": "adapter"},
        "model": {"class_path": "PeraCausalLM", "init_args": {"pretrained": "model", "learning_rate": 0.01}},
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train_files": "rows.jsonl", "val_files": "rows.jsonl", "batch_size": 2},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_config_trains_in_two_processes(project: Path) -> None:
    words = ("fit", "--config", "config.yaml", "--config", str(ROOT / "configs/strategies/fsdp2.yaml"))
    devices = ("--trainer.accelerator", "cpu", "--trainer.devices", "2")
    done = subprocess.run(
        [sys.executable, "-m", "pera_lightning", *words, *devices],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # One folder of checkpoints that both have written to, and an adapter that one process loads.
    [checkpoint] = (project / "checkpoints").glob("*.ckpt")
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    assert run("generate", "--adapter", "adapter", "--prompt", "say a", "--max_new_tokens", 2, folder=project)


def test_a_gpu_that_is_not_there(project: Path) -> None:
    if torch.cuda.is_available():
        return
    printed = run("fit", "--config", "config.yaml", "--trainer.accelerator", "gpu", folder=project, ok=False)
    assert "Traceback" not in printed
    assert "No supported gpu backend" in printed
    assert "--trainer.accelerator cpu" in printed


def test_the_strategy_has_a_name() -> None:
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2Strategy)
