"""QPERA on SmolLM2-135M: every kind of base against the floating one, on the quickstart's task.

make bench-quantization
python -m benchmarks.quantization --only nf4

Trains each base with configs/qpera_smollm2_cpu.yaml, merges the adapter in every way, and measures the LoftQ start.
Writes docs/quantization.md, benchmarks/results/quantization.csv and loftq.csv. Takes about an hour on two CPU cores;
finished trainings under runs/quantization are kept, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from benchmarks.quantization_report import show, write
from pera_lightning import InstructionDataModule, PeraCausalLM, PeraConfig, inject_adapter, load_adapter
from pera_lightning.export.merged.merge import WAYS, MergeReport, merge_and_report
from pera_lightning.injection import adapter_bytes, stored_bytes
from pera_lightning.models.answer_loss import answer_logits, answer_loss

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "qpera_smollm2_cpu.yaml"
RUNS = ROOT / "runs" / "quantization"
KINDS: dict[str, dict[str, Any]] = {
    "float": {"quantization": None, "dtype": "native"},
    "nf4": {"quantization": "nf4"},
    "nf4-dq": {"quantization": "nf4-dq"},
    "int8": {"quantization": "int8"},
}
"""Kind of base -> what differs from the config."""
LOFTQ = [(4, 1), (16, 1), (16, 5), (64, 1), (64, 5)]
"""Rank and steps."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    kinds = parser.parse_args().only
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    console = Console()
    rows = []
    for kind in kinds:
        console.print(f"{kind}: training, testing and merging")
        rows.append(measure(kind))
    console.print("LoftQ start")
    loftq = list(measure_loftq())
    show(rows, loftq, console)
    if kinds == list(KINDS):
        for name, table in (("quantization", rows), ("loftq", loftq)):
            _write_csv(table, ROOT / "benchmarks" / "results" / f"{name}.csv")
        write(rows, loftq, ROOT / "docs" / "quantization.md")


def measure(kind: str) -> dict[str, Any]:
    """One row: train and test as a user would, then load base and adapter again to weigh and to merge them."""
    adapter = _fit_and_test(kind)
    with (RUNS / kind / "test" / "comparison.csv").open(encoding="utf-8") as file:
        tested = {row["metric"]: (float(row["base"]), float(row["adapted"])) for row in csv.DictReader(file)}
    model = load_base(kind)
    row: dict[str, Any] = {
        "base": kind,
        "base_loss": tested["test_loss"][0],
        "adapted_loss": tested["test_loss"][1],
        "exact_match": tested["test_exact_match"][1],
        "bytes_base": stored_bytes(model),
    }
    load_adapter(model, adapter)
    row["bytes_adapter"] = adapter_bytes(model)
    for way in WAYS if kind != "float" else WAYS[:1]:
        report, loss = _merge(kind, adapter, way)
        row |= {
            f"{way}_weight_error": report.weight_error,
            f"{way}_logit_error": report.logit_error,
            f"{way}_loss": loss,
        }
    return row


def measure_loftq() -> Iterator[dict[str, Any]]:
    """How far the NF4 model is from the floating one before any training: loss per answer token of the test rows."""
    batches = list(test_batches())
    floating = load_base("float")
    losses = {"float": mean_loss(floating, batches), "nf4": mean_loss(load_base("nf4"), batches)}
    for rank, steps in LOFTQ:
        model = load_base("nf4")
        config = PeraConfig(rank, init="loftq", loftq_steps=steps, exclude_modules=["lm_head"])
        inject_adapter(model, config, float_model=floating)
        loss = mean_loss(model, batches)
        gap = (loss - losses["float"]) / (losses["nf4"] - losses["float"])
        yield {"rank": rank, "steps": steps, **losses, "nf4_with_loftq": loss, "gap_left": gap}


def load_base(kind: str) -> nn.Module:
    """The base of one kind, as the runs load it."""
    module = PeraCausalLM(**config_of(kind)["model"]["init_args"])
    module.configure_model()
    return module.model


def test_batches() -> Iterator[dict[str, Tensor]]:
    """The held-out rows."""
    config = config_of("float")
    data = InstructionDataModule(**config["data"]["init_args"], tokenizer=config["model"]["init_args"]["pretrained"])
    data.setup("test")
    yield from data.test_dataloader()


def config_of(kind: str) -> dict[str, Any]:
    """The config of one kind's runs."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["model"]["init_args"] |= KINDS[kind]
    config["trainer"]["logger"]["init_args"] |= {"save_dir": str(RUNS), "name": kind}
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(RUNS / kind / "fit" / "checkpoints")
    return config


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    """Loss per answer token."""
    total, tokens = 0.0, 0
    for batch in batches:
        logits, targets = answer_logits(model.eval(), batch)
        count = int((targets != -100).sum())
        total += answer_loss(logits, targets).item() * count
        tokens += count
    return total / tokens


def _merge(kind: str, adapter: Path, way: str) -> tuple[MergeReport, float]:
    model, batches = load_base(kind), list(test_batches())
    load_adapter(model, adapter)
    original = load_base("float") if way == "original" else None
    probe = {"input_ids": batches[0]["input_ids"][:8], "attention_mask": batches[0]["attention_mask"][:8]}
    report = merge_and_report(model, into=way, original=original, probe=probe)
    return report, mean_loss(model, batches)


def _fit_and_test(kind: str) -> Path:
    """Run the command line as a user would, unless it has been done; returns the adapter's folder."""
    folder = RUNS / kind
    if (folder / "test" / "comparison.csv").is_file():
        return folder / "fit" / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(kind)), encoding="utf-8")
    _run("fit", "--config", str(config))
    checkpoint = folder / "fit" / "checkpoints" / "best.ckpt"
    version = ["--trainer.logger.init_args.version", "test"]
    _run("test", "--config", str(config), "--ckpt_path", str(checkpoint), *version, "--compare_base", "true")
    return folder / "fit" / "adapter"


def _run(command: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pera_lightning", command, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
