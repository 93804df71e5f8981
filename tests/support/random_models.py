"""Random small models with what makes adapters stumble: shared layers, tied weights, several dtypes, odd sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from transformers.pytorch_utils import Conv1D

WIDTHS = (1, 3, 5, 8)
TOKENS = 7
# "base_layer" is what the package itself calls the layer below an adapter.
NAMES = ("fc", "fc1", "q_proj", "0", "1", "layer_10", "2b", "base_layer", "a+b", "norm", "head")


class Chain(nn.Module):
    """Children one after another, held as attributes, in a ModuleList or in a ModuleDict."""

    def __init__(self, children: dict[str, nn.Module], held: str) -> None:
        super().__init__()
        self.held = held
        if held == "list":
            self.steps = nn.ModuleList(children.values())
        elif held == "dict":
            self.steps = nn.ModuleDict(children)
        else:
            for name, child in children.items():
                self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        # children() would leave out the second name of a shared one.
        for child in (self if self.held == "attributes" else self.steps)._modules.values():
            x = child(x)
        return x


class Sum(nn.ModuleDict):
    """Children side by side, their outputs added to the input where it fits; children named `idle` are not called."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [child(x) for name, child in self.items() if name != "idle"]
        total = torch.stack(parts).sum(0)
        return total + x if total.shape == x.shape else total


class Cast(nn.Module):
    """Computes in a dtype of its own."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype)).to(x.dtype)


class RowNorm(nn.Module):
    """BatchNorm over (batch, length, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view(x.shape)


class Attention(nn.Module):
    """Reads the weight of `out_proj` instead of calling it."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2 if width % 2 == 0 else 1, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].contiguous()


class BranchedLinear(nn.Linear):
    """A linear layer with others inside, as LoRA layers of some libraries are."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.down, self.up = nn.Linear(n_in, 2), nn.Linear(2, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class Halved(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Reader(nn.Module):
    """Token ids -> embedding -> body -> head, perhaps tied to the embedding."""

    def __init__(self, body: nn.Module, width: int, tied: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width, padding_idx=0, dtype=dtype)
        self.body = body
        self.head = nn.Linear(width, TOKENS, bias=not tied, dtype=dtype)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


@dataclass
class RandomModel:
    """A model and what a test has to know about it.

    Attributes:
        model: The model.
        inputs: What to call it with; the first for training.
        kinds: What it is made of.
    """

    model: nn.Module
    inputs: list[Tensor]
    kinds: set[str] = field(default_factory=set)


class _Builder:
    """Builds a tree of modules from the numbers of `rng`."""

    def __init__(self, rng: random.Random, dtype: torch.dtype) -> None:
        self.rng = rng
        self.dtype = dtype
        # Few of them, so that modules can be shared and weights tied.
        self.widths = rng.sample(WIDTHS, 2)
        self.kinds: set[str] = set()
        # Earlier modules by their sizes and dtype: to use again, or to take the weight of.
        self.modules: dict[tuple[object, ...], list[nn.Module]] = {}
        self.linears: dict[tuple[object, ...], list[nn.Linear]] = {}

    def often(self, share: float) -> bool:
        return self.rng.random() < share

    def tree(self, n_in: int, n_out: int, depth: int) -> nn.Module:
        """A module from width `n_in` to `n_out`."""
        earlier = self.modules.get((n_in, n_out, self.dtype))
        if earlier and self.often(0.2):
            self.kinds.add("shared")
            return self.rng.choice(earlier)
        if depth == 0:
            made = self.leaf(n_in, n_out)
        else:
            containers: list[Callable[[int, int, int], nn.Module]] = [self.chain, self.chain, self.sum, self.cast]
            made = self.rng.choice(containers)(n_in, n_out, depth - 1)
        self.modules.setdefault((n_in, n_out, self.dtype), []).append(made)
        return made

    def names(self, count: int) -> Iterator[str]:
        return iter(self.rng.sample(NAMES, count))

    def chain(self, n_in: int, n_out: int, depth: int) -> nn.Module:
        widths = [n_in, *(self.rng.choice(self.widths) for _ in range(self.rng.randint(1, 2))), n_out]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps.append(self.tree(before, after, self.rng.randint(0, depth)))
            steps.append(self.same_width(after))
        if self.often(0.3):
            return nn.Sequential(*steps)
        named = dict(zip(self.names(len(steps)), steps, strict=True))
        return Chain(named, self.rng.choice(["list", "dict", "attributes"]))

    def sum(self, n_in: int, n_out: int, depth: int) -> nn.Module:
        count = self.rng.randint(1, 3)
        branches = {name: self.tree(n_in, n_out, depth) for name in self.names(count)}
        if self.often(0.3):
            self.kinds.add("idle")
            branches["idle"] = nn.Linear(n_in, n_out, dtype=self.dtype)
        return Sum(branches)

    def cast(self, n_in: int, n_out: int, depth: int) -> nn.Module:
        outside, self.dtype = self.dtype, self.rng.choice([torch.float32, torch.bfloat16, torch.float64])
        made = Cast(self.tree(n_in, n_out, depth), self.dtype)
        self.dtype = outside
        self.kinds.add("cast")
        return made

    def leaf(self, n_in: int, n_out: int) -> nn.Module:
        kind = self.rng.choices(
            ["linear", "Conv1D", "weight_norm", "parametrized bias", "branched"], weights=[12, 3, 0.7, 0.7, 1]
        )[0]
        self.kinds.add(kind)
        if kind == "Conv1D":
            return Conv1D(n_out, n_in).to(self.dtype)
        if kind == "branched":
            return BranchedLinear(n_in, n_out).to(self.dtype)
        linear = nn.Linear(n_in, n_out, bias=kind != "linear" or self.often(0.6), dtype=self.dtype)
        if kind == "weight_norm":
            return parametrizations.weight_norm(linear)
        if kind == "parametrized bias":
            return parametrize.register_parametrization(linear, "bias", Halved())
        twins = self.linears.setdefault((n_in, n_out, self.dtype), [])
        if twins and self.often(0.3):
            self.kinds.add("tied")
            linear.weight = self.rng.choice(twins).weight
        twins.append(linear)
        return linear

    def same_width(self, width: int) -> nn.Module:
        kind = self.rng.choice(["tanh", "tanh", "dropout", "layer norm", "batch norm", "attention", "encoder"])
        self.kinds.add(kind)
        if kind == "attention":
            return Attention(width, self.often(0.5)).to(self.dtype)
        if kind == "encoder":
            heads = 4 if width % 4 == 0 else 1
            return nn.TransformerEncoderLayer(width, heads, 5, dropout=0.1, batch_first=True, dtype=self.dtype)
        made = {"dropout": nn.Dropout(0.5), "layer norm": nn.LayerNorm(width), "batch norm": RowNorm(width)}
        return made.get(kind, nn.Tanh()).to(self.dtype)


def random_model(rng: random.Random) -> RandomModel:
    """A model; torch's own random numbers have to be seeded by the caller."""
    dtype = rng.choices([torch.float32, torch.bfloat16, torch.float64], weights=[5, 2, 2])[0]
    builder = _Builder(rng, dtype)
    reads_tokens, n_in, n_out = builder.often(0.4), *rng.choices(builder.widths, k=2)
    model = builder.chain(n_in, n_in if reads_tokens else n_out, rng.randint(1, 2))
    # One token, or so many that the adapter keeps nothing between calls.
    shapes = [(2, 3), rng.choice([(1, 1), (8, 9)])]
    if reads_tokens:
        tied = builder.often(0.5)
        builder.kinds |= {"embedding"} | ({"tied embedding"} if tied else set())
        model = Reader(model, n_in, tied, dtype)
        inputs = [torch.randint(TOKENS, shape) for shape in shapes]
    else:
        inputs = [torch.randn(*shape, n_in, dtype=dtype) for shape in shapes]
    _random_modes(rng, model)
    # Torch's own attention takes no empty batch.
    if not builder.kinds & {"attention", "encoder"} and builder.often(0.5):
        builder.kinds.add("empty batch")
        inputs.append(inputs[0][:0])
    return RandomModel(model, inputs, builder.kinds)


def _random_modes(rng: random.Random, model: nn.Module) -> None:
    """Frozen parameters and modules in another mode than the model's, here and there."""
    frozen = rng.choice([0, 0, 0.3, 1])
    for parameter in model.parameters():
        parameter.requires_grad_(rng.random() >= frozen)
    model.train(rng.random() < 0.5)
    for module in model.modules():
        if rng.random() < 0.1:
            module.training = not module.training
