"""The helper in modules and runs of many kinds; its values are in tests/faults/test_accumulation.py."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pera_lightning import WeightedAccumulation, adapter_state_dict
from pera_lightning.errors import ConfigError
from tests.callback.resume.test_resume import AT_EPOCH_END, check_same
from tests.faults.test_accumulation import check, difference
from tests.support.accumulation import Foreign, fit_foreign, foreign_batch, right_foreign
from tests.support.noisy import Noisy, train
from tests.support.synchronisation import WithoutWaiting
from tests.support.trainers import cpu_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


class Weighed(Noisy):
    """Batches of different weights."""

    def __init__(self) -> None:
        super().__init__(StatefulDataLoader)
        self.accumulation = WeightedAccumulation(self)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.accumulation.weigh(super().training_step(batch, batch_idx), 5 * batch_idx + 3)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_goes_on_within_a_step_bit_by_bit(tmp_path: Path, batch: int) -> None:
    options = {"accumulate_grad_batches": 3, "save_after": batch, "saving": AT_EPOCH_END, "max_epochs": 2}
    check_same(tmp_path, "extra", (Weighed(), Weighed()), **options)


def test_gradients_that_were_not_weighed_are_left_out(tmp_path: Path) -> None:
    """As checkpoints of earlier versions hold them."""
    options = {"accumulate_grad_batches": 3, "saving": AT_EPOCH_END, "max_epochs": 1, "limit_train_batches": 3}
    train(tmp_path, Weighed(), 1, save_after=1, **options)
    checkpoint = torch.load(tmp_path / "extra.ckpt", weights_only=True)
    adapters = []
    for name, gradients in (("old", checkpoint["pera_processes"][0]["gradients"]), ("none", {})):
        (process,) = checkpoint["pera_processes"]
        process.pop("weights", None)
        process["gradients"] = gradients
        torch.save(checkpoint, tmp_path / "older.ckpt")
        module = Weighed()
        if gradients:
            with pytest.warns(UserWarning, match="did not weigh its batches by their tokens: they are left out"):
                train(tmp_path / name, module, 9, tmp_path / "older.ckpt", **options)
        else:
            train(tmp_path / name, module, 9, tmp_path / "older.ckpt", **options)
        adapters.append(adapter_state_dict(module))
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())


class Plain(Foreign):
    """The same without the helper."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch["x"]), batch["y"], ignore_index=-100)
        self.log("train_loss", loss, prog_bar=True)
        return loss


class Counted(Plain):
    """Knows its number of tokens on the CPU."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        weighed = self.accumulation.weigh(loss, len(batch["y"]) - 3)
        assert (weighed is loss) == (len(batch["y"]) > 3)
        assert not weighed._backward_hooks or self.trainer.accumulate_grad_batches > 1
        return weighed


def test_nothing_changes_where_every_batch_is_a_step(tmp_path: Path) -> None:
    plain, *weighed = (fit_foreign(tmp_path, kind([[3, 9, 1, 4]])) for kind in (Plain, Foreign, Counted))
    for found in weighed:
        assert found["losses"] == plain["losses"]
        for step, expected in zip(found["steps"], plain["steps"], strict=True):
            assert all(torch.equal(step[name], value) for name, value in expected.items())


def test_a_number_known_on_the_cpu(tmp_path: Path) -> None:
    found = fit_foreign(tmp_path, Counted([[3, 0, 9]]), accumulate_grad_batches=3)
    assert difference(found["steps"][0], right_foreign([3, 9])[0]) <= 1e-5


@pytest.mark.parametrize("batches", [1, 2])
def test_no_step_waits(tmp_path: Path, batches: int) -> None:
    waiting = WithoutWaiting()
    module = Foreign([[3, 9, 1, 4]])
    # It looks at the gradients.
    module.configure_gradient_clipping = lambda *args, **options: None  # type: ignore[method-assign]
    cpu_trainer(tmp_path, waiting, max_epochs=1, accumulate_grad_batches=batches, enable_checkpointing=False).fit(
        module
    )
    assert waiting.batches == 4


class Failing(Foreign):
    """Runs out of memory in its second batch, once."""

    where = "forward"

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1 and self.where == "backward":
            loss.register_hook(self._fail)
        return self._fail() if batch_idx == 1 and self.where == "forward" else loss

    def _fail(self, *_: Any) -> Any:
        self.where = "nowhere"
        raise RuntimeError("no room")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("same", [True, False])
def test_a_fit_after_one_that_failed_within_a_step(tmp_path: Path, where: str, same: bool) -> None:
    module = Failing([[3, 9, 1]])
    module.where = where
    options = {"accumulate_grad_batches": 3, "max_epochs": 1, "enable_checkpointing": False}
    trainer = cpu_trainer(tmp_path, **options)
    with pytest.raises(RuntimeError, match="no room"):
        trainer.fit(module)
    (trainer if same else cpu_trainer(tmp_path, **options)).fit(module)
    assert difference(module.steps[0], right_foreign([3, 9, 1])[0]) <= 1e-5
    assert trainer.callbacks.count(module.accumulation) == 1


class Tuned(Foreign):
    """Has a learning rate to be found."""

    lr = 1e-3


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_while_the_tuner_looks_for_a_learning_rate(tmp_path: Path) -> None:
    module = Tuned([[3, 9, 1, 4]])
    trainer = cpu_trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1, enable_checkpointing=False)
    Tuner(trainer).lr_find(module, num_training=4)
    found = module.steps
    # One row of all that it looks at; the weights move after it.
    assert len(found) >= 1
    assert difference(found[0], right_foreign([3, 9])[0]) <= 1e-5


class OutOfMemory(Foreign):
    """Has room for batches of two alone; in the second backward pass of more it is over."""

    batch_size = 4

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.batch_size > 2 and batch_idx == 1:
            loss.register_hook(self._fail)
        return loss

    def _fail(self, *_: Any) -> Any:
        raise RuntimeError("CUDA out of memory.")

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts[0], batch_size=self.batch_size, collate_fn=lambda parts: foreign_batch(sum(parts)))


def test_while_the_tuner_looks_for_a_batch_size(tmp_path: Path) -> None:
    module = OutOfMemory([[3, 9, 1, 4, 2, 1, 5, 2]])
    trainer = cpu_trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1, enable_checkpointing=False)
    Tuner(trainer).scale_batch_size(module, init_val=4, max_trials=2, steps_per_trial=2)
    # Of batches of two, the first that there was room for.
    assert difference(module.steps[0], right_foreign([12, 5])[0]) <= 1e-5


def test_refuses_several_optimizers(tmp_path: Path) -> None:
    class Two(Foreign):
        def __init__(self) -> None:
            super().__init__([[3]])
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]

    with pytest.raises(ConfigError, match="Two with 2 optimizers"):
        cpu_trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(Two())


class TakesTheIterator(Foreign):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_refuses_a_step_that_fetches_its_batches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TakesTheIterator\.training_step\(dataloader_iter\)"):
        fit_foreign(tmp_path, TakesTheIterator([[3, 9]]), accumulate_grad_batches=2)


class Twice(Foreign):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + super().training_step(batch, batch_idx)


def test_refuses_two_losses_of_one_batch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="second call of weigh in one training_step of Twice"):
        fit_foreign(tmp_path, Twice([[3, 9]]), accumulate_grad_batches=2)


class Overriding(Foreign):
    """Somebody's module with callbacks and a hook of its own, that looks at the gradients before they are clipped."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return [EarlyStopping("train_loss", check_on_train_epoch_end=True)]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.found = {f"net.{name}": value.grad.clone() for name, value in self.net.named_parameters()}


class Looking(pl.Callback):
    """The first of the callbacks."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        self.found = {f"net.{name}": value.grad.clone() for name, value in module.net.named_parameters()}


def test_hooks_find_the_right_gradients(tmp_path: Path) -> None:
    module, looking = Overriding([[3, 9]]), Looking()
    cpu_trainer(tmp_path, looking, max_epochs=1, accumulate_grad_batches=2).fit(module)
    expected, _ = right_foreign([3, 9])
    assert difference(module.found, expected) <= 1e-5
    assert difference(looking.found, expected) <= 1e-5


def test_outside_of_training_a_loss_stays_as_it_is() -> None:
    module = Foreign([[3]])
    loss = torch.tensor(2.0, requires_grad=True)
    assert module.accumulation.weigh(loss, 0) is loss
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert WeightedAccumulation.of(twin)._module is twin


def test_another_module_of_the_same_trainer(tmp_path: Path) -> None:
    first, second = Foreign([[3, 9]]), Foreign([[1, 4]])
    trainer = cpu_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2, enable_checkpointing=False)
    trainer.fit(first)
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(second)
    check({"steps": second.steps, "losses": [second.accumulation.loss.item()]}, [right_foreign([1, 4])])
