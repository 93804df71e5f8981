"""Weights that a batch lost by what was done with its loss: terms added, the weighed one ignored, torch's own step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.errors import ConfigError
from tests.faults.test_accumulation import difference
from tests.support.accumulation import Foreign, Gradients, fit_foreign, gradients_of, linear_net, right_foreign
from tests.support.trainers import cpu_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")


class Varied(Foreign):
    """Weighs and returns in one of the ways that a user may."""

    kind, counts = "penalty", "tensor"

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        loss = F.cross_entropy(self.net(batch["x"]), batch["y"], ignore_index=-100)
        count = (batch["y"] != -100).sum()
        count = {"tensor": count, "one element": count[None], "number": int(count)}[self.counts]
        weighed = self.accumulation.weigh(loss, count)
        if self.kind == "penalty":
            return weighed + self.net[0].weight.pow(2).sum()
        if self.kind == "ignored":
            return loss
        return None if self.kind == "last missing" and batch_idx == 2 else weighed


def with_penalty(lengths: list[int]) -> Gradients:
    expected, _ = right_foreign(lengths)
    return {**expected, "net.0.weight": expected["net.0.weight"] + 2 * linear_net()[0].weight.detach()}


@pytest.mark.parametrize("counts", ["tensor", "number", "one element"])
@pytest.mark.parametrize("kind", ["penalty", "ignored", "last missing"])
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_whatever_a_training_step_returns(tmp_path: Path, kind: str, counts: str) -> None:
    module = Varied([[3, 9, 1, 4, 2]])
    module.kind, module.counts = kind, counts
    steps = fit_foreign(tmp_path, module, accumulate_grad_batches=3)["steps"]
    rows = [[3, 9] if kind == "last missing" else [3, 9, 1], [4, 2]]
    rights = [with_penalty(part) if kind == "penalty" else right_foreign(part)[0] for part in rows]
    assert max(difference(step, right) for step, right in zip(steps, rights, strict=True)) <= 1e-5


@pytest.mark.parametrize("counts", ["tensor", "number"])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_batch_of_nothing_adds_no_term_either(tmp_path: Path, batches: int, counts: str) -> None:
    module = Varied([[0, 0, 3, 0]])
    module.counts = counts
    *empty, step = fit_foreign(tmp_path, module, accumulate_grad_batches=batches)["steps"][: 4 - batches]
    assert len(empty) == 3 - batches
    assert empty[0]["net.0.weight"].shape == (8, 5)
    assert not any(value.any() for one in empty for value in one.values())
    assert difference(step, with_penalty([3])) <= 1e-5


class Raw(Foreign):
    """Calls backward on the loss that it gave, and steps with torch's own optimizer."""

    def __init__(self) -> None:
        super().__init__([[3, 9, 1, 4]])
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        loss = F.cross_entropy(self.net(batch["x"]), batch["y"], ignore_index=-100)
        self.accumulation.weigh(loss, (batch["y"] != -100).sum())
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            self.steps.append(gradients_of(self))
            optimizer.zero_grad()


def test_stepped_by_torch_alone(tmp_path: Path) -> None:
    module = Raw()
    trainer = cpu_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    # In the second fit with another optimizer.
    for _ in range(2):
        trainer.fit_loop.epoch_progress.reset()
        trainer.fit(module)
        expected = [right_foreign(lengths)[0] for lengths in ([3, 9], [1, 4])]
        assert max(difference(*pair) for pair in zip(module.steps, expected, strict=True)) <= 1e-5


class Several(Foreign):
    """Counts its batch by rows."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.accumulation.weigh(self.net(batch["x"]).mean(), torch.tensor([3, 4]))


def test_refuses_a_count_of_several_elements(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"count of shape \(2,\)"):
        fit_foreign(tmp_path, Several([[3]]))
