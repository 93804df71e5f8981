"""The batch script for SLURM, with stand-ins for `srun` and `scontrol`: two tasks on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.support.pretrained import save_pretrained

SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks+=($!)
done
if [ -n "$LAST" ] && [ ! -e "$LAST" ]; then
    while [ ! -e "$LAST" ]; do sleep 0.02; done
    kill -TERM "${tasks[@]}"
fi
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$QUEUE"
"""
STEPS = 30


def write_recipe(folder: Path, run: Path) -> Path:
    checkpoints = {"dirpath": str(run / "checkpoints"), "every_n_train_steps": 1, "save_last": True}
    saving = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints}
    trainer = {"max_steps": STEPS, "callbacks": [saving], "logger": False, "enable_progress_bar": False}
    model = {"pretrained": str(folder / "model"), "learning_rate": 0.01}
    data = {"train_files": str(folder / "rows.jsonl"), "batch_size": 1}
    recipe = {
        "seed_everything": 1,
        "trainer": {**trainer, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
        "pera": {"rank": 2, "dropout": 0.1, "adapter_dir": str(run / "adapter")},
        "model": {"class_path": "PeraCausalLM", "init_args": model},
        "data": {"class_path": "InstructionDataModule", "init_args": data},
    }
    path = folder / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def submit(folder: Path, name: str, *, interrupt: bool) -> list[str]:
    """Run the script as a job; returns the commands that `scontrol` got."""
    run = folder / name
    recipe, queue = write_recipe(folder, run), folder / f"{name}.queue"
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("MASTER_PORT", "LOCAL_RANK")},
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RECIPE": str(recipe),
        "RUN": str(run),
        "STRATEGY": "ddp_gloo_cpu",
        "QUEUE": str(queue),
        "LAST": str(run / "checkpoints/last.ckpt") if interrupt else "",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "pera",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
    }
    command = ["bash", "examples/slurm/fit.sbatch"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return queue.read_text().splitlines() if queue.exists() else []


def test_a_job_whose_time_is_up_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model")
    rows = [{"instruction": f"say {i % 7}", "input": "", "output": f"{i % 5}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    assert submit(tmp_path, "cut", interrupt=True) == [f"requeue {os.getpid()}"]
    stopped = torch.load(tmp_path / "cut/checkpoints/last-sigterm.ckpt", weights_only=True)
    assert 0 < stopped["global_step"] < STEPS
    assert not (tmp_path / "cut/adapter").exists()
    # The job again, as the queue starts it: `last.ckpt` is there now, and nobody is interrupted.
    assert submit(tmp_path, "cut", interrupt=True) == [f"requeue {os.getpid()}"]
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS
    adapter = load_file(tmp_path / "cut/adapter/adapter_model.safetensors")
    assert all(value.any() for key, value in adapter.items() if key.endswith("pera_B"))
