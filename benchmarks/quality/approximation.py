"""What the products could do at best: how near a given weight change an adapter of a rank comes, with no data at all.

LoRA's best is known exactly, from the singular values. PERA's is sought by L-BFGS from several starts, in float64; what
it finds is a bound: there may be better. Factors and coefficients are free, so that this is what the form can express,
not what an optimizer with a few hundred steps and a loss on batches makes of it.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.quality.every_study import STUDIES
from benchmarks.quality.small_model import train_whole
from benchmarks.quality.studies import RUNS, SMALL_STEPS
from benchmarks.quality.variants import rms
from pera_lightning.functional import delta_weight, expanded_rank

RESULT = Path("benchmarks/results/quality/approximation.json")
RANKS = 1, 2, 4, 8
WIDTHS = 128, 384, 1024
STARTS = 4
ITERATIONS = 400
Terms = Literal["square", "full"]
TERMS: tuple[Terms, ...] = get_args(Terms)


@dataclass(frozen=True)
class Approximation:
    """How near a form of a rank came to a weight change.

    Attributes:
        target: What the change is.
        terms: The products that take part.
        rank: Rank of the adapter.
        lora: Share of the squared norm of the change that is left by the best LoRA of that rank.
        pera: The same of the best PERA that was found.
        worth: Rank of LoRA that leaves as little, between two ranks by a straight line.
        energy: Norm of the polynomial part over that of the linear one.
    """

    target: str
    terms: Terms
    rank: int
    lora: float
    pera: float
    worth: float
    energy: float


def left_by_lora(change: Tensor) -> Tensor:
    """Share of the squared norm that the best approximation of rank 0, 1, 2, ... leaves (Eckart and Young)."""
    squares = torch.linalg.svdvals(change).square()
    return 1 - torch.cat([squares.new_zeros(1), squares.cumsum(0)]) / squares.sum()


def approximate(change: Tensor, rank: int, terms: Terms, *, starts: int = STARTS) -> tuple[float, float]:
    """The share that the best PERA of order 2 leaves, and the norm of its polynomial part over that of the linear one.

    Args:
        change: Shape (out, in), float64.
        rank: Rank of the adapter.
        terms: The products that take part.
        starts: Tries. Each begins at LoRA's best factors, in another basis, which products tell apart, and as much
            noise: what is best for LoRA can be a local best for PERA.
    """
    decomposed = torch.linalg.svd(change, full_matrices=False)
    randoms = [torch.Generator().manual_seed(start) for start in range(starts)]
    return min(_descend(change, decomposed, rank, terms, random) for random in randoms)


def _descend(
    change: Tensor, decomposed: tuple[Tensor, ...], rank: int, terms: Terms, random: torch.Generator
) -> tuple[float, float]:
    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=like.dtype)

    left, values, right = decomposed
    basis = torch.linalg.qr(noise(change[:rank, :rank])).Q
    best = basis.T @ right[:rank], left[:, :rank] @ (values[:rank, None] * basis)
    # With entries of size 1, products are as large as what they are made of.
    A, B = (factor / rms(factor) + noise(factor) for factor in best)
    scaling = 2 * rms(best[0]) * rms(best[1])
    h = 0.1 * noise(change.new_empty(expanded_rank(rank, 2, terms) - rank))
    factors = [(A / 2**0.5).requires_grad_(), (B / 2**0.5).requires_grad_(), h.requires_grad_()]
    norm = change.square().sum()

    def left_over() -> Tensor:
        optimizer.zero_grad()
        share = (change - delta_weight(*factors, order=2, terms=terms, scaling=scaling)).square().sum() / norm
        share.backward()
        return share

    optimizer = torch.optim.LBFGS(
        factors,
        max_iter=ITERATIONS,
        history_size=20,
        line_search_fn="strong_wolfe",
        # Far below torch's own: it gains little for a while before it gains much.
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
    )
    optimizer.step(left_over)
    with torch.no_grad():
        whole = delta_weight(*factors, order=2, terms=terms, scaling=scaling)
        linear = delta_weight(*factors[:2], order=1, scaling=scaling)
    return left_over().item(), ((whole - linear).norm() / linear.norm()).item()


def worth_in_ranks(left: float, lora: Tensor) -> float:
    """The rank at which LoRA leaves that share, between two ranks by a straight line.

    Args:
        left: The share; above 1, where the approximation is worse than none, the rank is below 0.
        lora: What LoRA leaves at rank 0, 1, 2, ...
    """
    above = max(int((lora > left).sum()), 1)
    if above == len(lora):
        return float(above - 1)
    step = lora[above - 1] - lora[above]
    return above - 1 + float((lora[above - 1] - left) / step)


def targets(data: Path) -> Iterator[tuple[str, list[Tensor]]]:
    """Name and weight changes: random ones, and what training all weights changes in a model."""
    # First: what is missing in the folder should not be found after the work.
    trained = changes_of_training(data)
    for width in WIDTHS:
        random = torch.Generator().manual_seed(0)
        yield f"random, {width} x {width}", [torch.randn(width, width, generator=random, dtype=torch.float64)]
    yield "training all weights, 128 x 128 to 344", trained


def changes_of_training(data: Path) -> list[Tensor]:
    """What training all weights of the small language model on Shakespeare changes in its middle layer."""
    study = STUDIES["small_model_rank_1"]
    study.prepare(data)
    base, text = (RUNS / study.data[name] for name in ("model.init_args.pretrained", "data.init_args.train_files"))
    before = AutoModelForCausalLM.from_pretrained(base)
    after = train_whole(base, text, SMALL_STEPS).built_model()
    layers = [
        [module for module in model.model.layers[1].modules() if isinstance(module, nn.Linear)]
        for model in (before, after)
    ]
    return [(new.weight - old.weight).detach().double() for old, new in zip(*layers, strict=True)]


def kept() -> list[Approximation]:
    """What the repository keeps."""
    return [Approximation(**row) for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]]


def measure(data: Path) -> list[Approximation]:
    """All targets at all ranks, the mean over the matrices of a target."""
    found = []
    for target, changes in targets(data):
        cases = list(itertools.product(RANKS, TERMS, changes))
        tried = defaultdict[tuple[int, Terms], list[tuple[float, ...]]](list)
        for rank, terms, change in track(cases, target):
            lora = left_by_lora(change)
            left, energy = approximate(change, rank, terms)
            tried[rank, terms].append((lora[rank].item(), left, worth_in_ranks(left, lora), energy))
        for (rank, terms), values in tried.items():
            found.append(Approximation(target, terms, rank, *map(statistics.fmean, zip(*values, strict=True))))
    return found
