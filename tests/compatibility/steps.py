"""What a user does with an adapter, step by step, on a tiny model of any type."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pera_lightning import PeraConfig, export_lora, inject_adapter, load_adapter, merge_adapter, save_adapter
from pera_lightning.callback.frozen_norms import stop_running_statistics
from pera_lightning.data.collate import PaddingCollator, lay_end_to_end
from pera_lightning.errors import PeraError
from pera_lightning.export.merged.merged_model import export_merged
from pera_lightning.injection import adapted_layers, adapter_parameters
from pera_lightning.layers import PeraLinear
from pera_lightning.models.answer_loss import answer_logits, answer_loss
from pera_lightning.models.pack_check import check_packs
from tests.support.model_types import ModelType
from tests.support.models import randomise_adapter
from tests.support.reference import reference_delta_weight
from tests.support.tiny_configs import VOCABULARY

CONFIG = PeraConfig(2, 2, coefficient_scale="auto")
TOLERANCE = 1e-4
"""Of outputs computed in another order in float32, relative to their size; the adapter changes ten times as much."""
LOSS_TOLERANCE = 1e-5
UNTRIED, REMARKS = "untried", "remarks"
"""Reported beside the steps: why a type was not tried, and what is to be said of its training."""
STEPS = ("inject", "train", "save/load", "LoRA", "merged files", "pack", "merge")
ROW_LENGTHS = (13, 9, 4)
"""Longer than the windows of tiny models, and shorter than their convolutions look back."""


@dataclass
class Attempt:
    """One type of model on its way through the steps, each of which raises what goes wrong.

    Attributes:
        entry: The type.
        folder: An empty one.
        plain: What the model computes without an adapter.
        outputs: What it computes with one.
        model: With that adapter.
        remarks: What is to be said of a step that went right.
    """

    entry: ModelType
    folder: Path
    plain: Tensor
    outputs: Tensor | None = None
    model: Any = None
    remarks: list[str] = field(default_factory=list)

    def inject(self) -> None:
        """The outputs of the frozen base, bit by bit."""
        model = self.entry.build()
        inject_adapter(model, CONFIG)
        assert torch.equal(self._run(model), self.plain)

    def train(self) -> None:
        """The gradients are those of plain products with the changed weights; a step leaves the base as it is."""
        model = self._adapted().train()
        # As PeraCallback does.
        stop_running_statistics(model)
        base = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
        if not self._run_in_training(model).requires_grad:
            # Reversible layers pass gradients on only to what requires them.
            model.enable_input_require_grads()
            self.remarks.append("After `model.enable_input_require_grads()`.")
        with _plain_products(model):
            wanted = self._gradients(model)
        found = self._gradients(model)
        assert found.isfinite().all()
        assert found.any()
        assert _difference(found, wanted) < TOLERANCE
        without = [name for name, layer in adapted_layers(model) if not layer.pera_B.grad.any()]
        if without:
            self.remarks.append(f"No gradient: {_kinds(without)}.")
        torch.optim.Adam(adapter_parameters(model), lr=0.01).step()
        assert all(torch.equal(value, base[name]) for name, value in model.named_parameters() if name in base)

    def save_and_load(self) -> None:
        """A fresh model with the adapter of the folder gives the same outputs, bit by bit."""
        self.model = self._adapted()
        self.outputs = self._run(self.model)
        assert self.outputs.isfinite().all()
        assert _difference(self.outputs, self.plain) > 10 * TOLERANCE
        save_adapter(self.model, self.folder / "pera", base_model=str(self.folder / "base"))
        fresh = self.entry.build()
        load_adapter(fresh, self.folder / "pera")
        assert torch.equal(self._run(fresh), self.outputs)

    def lora(self) -> None:
        """PEFT loads all of the export and computes what the adapter does."""
        from peft import PeftModel

        export_lora(self.model, self.folder / "lora", inputs=[self.entry.arguments(self.model)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # PEFT looks at an attribute of transformers that is about to be renamed.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            loaded = PeftModel.from_pretrained(self.entry.build(), self.folder / "lora")
        self._expect(loaded.base_model.model)

    def merged_files(self) -> None:
        """transformers loads the merged files and computes what the adapted model does."""
        self.entry.build().save_pretrained(self.folder / "base")
        export_merged(self.folder / "pera", self.folder / "merged", base=str(self.folder / "base"), compare=False)
        self._expect(type(self.model).from_pretrained(self.folder / "merged").eval())

    def pack(self) -> None:
        """Packed rows give the loss and the gradients of padded ones."""
        model = self.model
        check_packs(model, torch.device("cpu"))
        generator = torch.Generator().manual_seed(3)
        rows = [torch.randint(4, VOCABULARY - 4, (length,), generator=generator) for length in ROW_LENGTHS]
        examples = [{"input_ids": row, "labels": row.index_fill(0, torch.tensor([0]), -100)} for row in rows]
        parameters = list(adapter_parameters(model))
        found = []
        for batch in (PaddingCollator(0)(examples), lay_end_to_end(examples)):
            loss = answer_loss(*answer_logits(model, batch))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            found.append((loss.item(), torch.cat([part.flatten() for part in gradients])))
        (padded, wanted), (packed, gradient) = found
        assert abs(packed - padded) < LOSS_TOLERANCE * padded
        assert _difference(gradient, wanted) < TOLERANCE

    def merge(self) -> None:
        """The merged model computes what the adapted one did."""
        merge_adapter(self.model)
        assert not list(adapted_layers(self.model))
        self._expect(self.model)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Name of each step, and the step."""
        runs = (self.inject, self.train, self.save_and_load, self.lora, self.merged_files, self.pack, self.merge)
        named = dict(zip(STEPS, runs, strict=True))
        return [(name, run) for name, run in named.items() if name in steps_of(self.entry)]

    def _run_in_training(self, model: nn.Module) -> Tensor:
        # The same dropout every time.
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.entry.call(model)

    def _gradients(self, model: nn.Module) -> Tensor:
        """Of a loss, for all of the adapter in one row; zero where there is none."""
        model.zero_grad()
        outputs = self._run_in_training(model)
        # Not the mean square, which behind a LayerNorm is always 1.
        target = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
        nn.functional.mse_loss(outputs.float(), target).backward()
        for value in adapter_parameters(model):
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        return torch.cat([value.grad.flatten() for value in adapter_parameters(model) if value.grad is not None])

    def _adapted(self) -> Any:
        model = self.entry.build()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            inject_adapter(model, CONFIG)
            randomise_adapter(model, 0.1)
        return model

    @torch.no_grad()
    def _run(self, model: nn.Module) -> Tensor:
        return self.entry.call(model)

    def _expect(self, model: nn.Module) -> None:
        assert self.outputs is not None
        assert _difference(self._run(model), self.outputs) < TOLERANCE


def steps_of(entry: ModelType) -> list[str]:
    """The steps that a type is tried in."""
    return [name for name in STEPS if name != "pack" or entry.kind.packs]


def run_steps(entry: ModelType, folder: Path, report: Callable[[str, str], None]) -> None:
    """Try a type of model; a step that is refused is reported, everything else that goes wrong raises.

    Args:
        entry: The type.
        folder: An empty one.
        report: Takes the name of a step, and nothing if it went right, else the first line of the refusal.
    """
    try:
        with torch.no_grad():
            model = entry.build().requires_grad_(False)
            plain = entry.call(model)
            entry.call(model.train())
    except Exception as error:  # the rule of tiny configs does not fit this type, or it needs another library
        report(UNTRIED, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
        return
    attempt = Attempt(entry, folder, plain)
    for name, step in attempt.steps():
        try:
            step()
        except PeraError as error:
            report(name, str(error).splitlines()[0])
            if name == "inject":
                return
        else:
            report(name, "")
    report(REMARKS, " ".join(attempt.remarks))


@contextmanager
def _plain_products(model: nn.Module) -> Iterator[None]:
    """Within it every adapted layer is its base with W + dW in the place of W, by torch's own gradients."""
    layers = [layer for _, layer in adapted_layers(model)]
    for layer in layers:
        layer.forward = partial(_plain_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _plain_product(layer: PeraLinear, *args: Any, **kwargs: Any) -> Tensor:
    base: Any = layer.base_layer
    change = reference_delta_weight(
        layer.pera_A, layer.pera_B, layer.coefficients, CONFIG.order, CONFIG.terms, layer.scaling
    )
    change = change.to(base.weight.dtype)
    weight = base.weight + (change if isinstance(base, nn.Linear) else change.T)
    return functional_call(base, {"weight": weight}, args, kwargs)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).float().norm() / wanted.float().norm().clamp_min(1e-30)).item()


def _kinds(names: list[str]) -> str:
    """The modules that hold these layers, numbers as `*`, with how many there are in each."""
    holders = Counter(re.sub(r"\b\d+\b", "*", name.rpartition(".")[0] or name) for name in names)
    return ", ".join(f"`{name}` ({count})" for name, count in sorted(holders.items()))
