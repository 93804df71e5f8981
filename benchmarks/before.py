"""Where Python decides: a training step of eight adapted layers with tiny matrices, beside another version's.

git archive REVISION pera_lightning | tar x -C FOLDER
python -m benchmarks.before FOLDER

Both versions are imported into one process and take turns; times are processor time of one thread, medians of ratios.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

LAYERS, WIDTH, TOKENS = 8, 32, 16
OPTIONS: list[dict[str, Any]] = [
    {"rank": 4},
    {"rank": 8},
    {"rank": 8, "terms": "square"},
    {"rank": 8, "coefficient_scale": "auto"},
    {"rank": 8, "order": 1},
    {"rank": 8, "order": 3},
    {"rank": 8, "dropout": 0.05},
]


def load(folder: str | None) -> ModuleType:
    """The package of a folder, or the one that is installed; none before it is seen any more."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pera_lightning"]:
        del sys.modules[name]
    if folder is None:
        return importlib.import_module("pera_lightning")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("pera_lightning")
    finally:
        sys.path.remove(folder)


def step_of(package: ModuleType, options: dict[str, Any]) -> Callable[[], None]:
    """Forward and backward pass of a model with that package's adapters."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]).requires_grad_(False)
    config = package.PeraConfig(target_modules=[str(layer) for layer in range(LAYERS)], **options)
    package.inject_adapter(model, config)
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.1)
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)

    def step() -> None:
        model(x).square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.thread_time()
    step()
    return time.thread_time() - start


def compare(old: ModuleType, new: ModuleType, options: dict[str, Any], repeats: int = 150) -> float:
    """How many times faster the new one is."""
    steps = step_of(old, options), step_of(new, options)
    times = [[seconds(step) for step in steps] for _ in range(repeats)]
    return statistics.median(before / after for before, after in times[repeats // 8 :])


def main() -> None:
    """One line for each form."""
    torch.set_num_threads(1)
    # Both import what they need when they first do something, from wherever their name then leads.
    old = load(sys.argv[1])
    compare(old, old, OPTIONS[1], 8)
    new = load(None)
    for options in OPTIONS:
        print(f"{options}: {compare(old, new, options):.2f} times faster", flush=True)


if __name__ == "__main__":
    main()
