"""PERA in a plain PyTorch loop: no Lightning, no Trainer.

    make models/smollm2-135m-instruct                          # the model, once; or --model with a folder or hub id
    python examples/tool_calls/generate.py --out data/tool_calls
    python examples/plain_pytorch.py

SmolLM2-135M learns to answer spoken requests with tool calls. The last lines, after 30 steps:

    test loss: base 2.717, with the adapter 0.152
    adapter saved to runs/plain_pytorch/adapter
    largest difference of a logit: reloaded 0.0e+00, merged 9.5e-05
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from spoken_requests import read_requests
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    inject_adapter,
    load_adapter,
    merge_adapter,
    parameter_groups,
    save_adapter,
)


@dataclass(frozen=True)
class Result:
    """What came out: losses per answer token on the test rows, and how far reloading and merging change the outputs."""

    base_loss: float
    adapted_loss: float
    reload_difference: float
    merge_difference: float


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="PERA in a plain PyTorch loop.", formatter_class=with_defaults)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder or hub id of a causal LM")
    parser.add_argument("--data", type=Path, default=Path("data/tool_calls"), help="folder of generate.py")
    parser.add_argument("--out", type=Path, default=Path("runs/plain_pytorch/adapter"), help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per step")
    parser.add_argument("--rank", type=int, default=4, help="rank of the adapter")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="learning rate")
    return parser.parse_args(arguments)


def train(model: nn.Module, loader: DataLoader, learning_rate: float) -> None:
    """One pass over the loader; only the adapter has gradients."""
    optimizer = torch.optim.AdamW(parameter_groups(model.named_parameters(), learning_rate=learning_rate))
    model.train()
    for step, batch in enumerate(track(loader, "training"), start=1):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 1 or step % 10 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
    model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Mean loss per batch."""
    return sum(model(**batch).loss.item() for batch in loader) / len(loader)


@torch.no_grad()
def logits(model: nn.Module, loader: DataLoader) -> torch.Tensor:
    """What the model answers to the first batch."""
    return model(**next(iter(loader))).logits


def main(arguments: list[str] | None = None) -> Result:
    """Train, compare with the base, save, reload, merge."""
    options = parse_arguments(arguments)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    collate = DataCollatorForSeq2Seq(tokenizer)
    train_rows = read_requests(options.data / "train.jsonl", tokenizer, options.steps * options.batch_size)
    test_rows = read_requests(options.data / "test.jsonl", tokenizer, 20)
    train_loader = DataLoader(train_rows, options.batch_size, shuffle=True, collate_fn=collate)
    test_loader = DataLoader(test_rows, batch_size=10, collate_fn=collate)

    print(inject_adapter(model, PeraConfig(options.rank)))  # freezes the base
    train(model, train_loader, options.learning_rate)

    adapted_loss = evaluate(model, test_loader)
    with adapter_disabled(model):
        base_loss = evaluate(model, test_loader)
    print(f"test loss: base {base_loss:.3f}, with the adapter {adapted_loss:.3f}")

    print(f"adapter saved to {save_adapter(model, options.out)}")
    fresh = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    load_adapter(fresh, options.out)
    reload_difference = (logits(fresh, test_loader) - logits(model, test_loader)).abs().max().item()
    merge_adapter(fresh)  # a plain model again: fresh.save_pretrained(folder) writes it for any other program
    merge_difference = (logits(fresh, test_loader) - logits(model, test_loader)).abs().max().item()
    print(f"largest difference of a logit: reloaded {reload_difference:.1e}, merged {merge_difference:.1e}")
    return Result(base_loss, adapted_loss, reload_difference, merge_difference)


if __name__ == "__main__":
    main()
