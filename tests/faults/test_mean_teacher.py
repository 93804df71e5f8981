"""A mean teacher, a deep copy of the student, was refused with a cure that does not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pera_lightning import PeraCallback, PeraConfig, adapter_state_dict, inject_adapter, load_adapter, save_adapter
from pera_lightning.checkpoint.training.consolidation import consolidate
from pera_lightning.injection import adapted_layers
from pera_lightning.injection.copies import exact_copies
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor, tiny_llama, token_ids
from tests.support.trainers import SAFE_LOADING

# A run that goes on does so in a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
DECAY = 0.8


class Taught(Regressor):
    """Learns from its labels and from an average of itself.

    Args:
        where: The hook in which the teacher is made.
        freeze: Whether it is frozen there.
        only_student: Whether the optimizer gets the student's parameters alone.
        averaged: Whether torch's AveragedModel makes and moves the teacher.
    """

    def __init__(
        self, where: str = "__init__", freeze: bool = True, only_student: bool = True, averaged: bool = False
    ) -> None:
        super().__init__()
        self.where, self.freeze, self.only_student, self.averaged = where, freeze, only_student, averaged
        self.teacher: Any = None
        self.students: list[dict[str, Tensor]] = []
        self._make("__init__")

    def _make(self, where: str) -> None:
        if where != self.where or self.teacher is not None:
            return
        average = get_ema_multi_avg_fn(DECAY)
        self.teacher = AveragedModel(self.net, multi_avg_fn=average) if self.averaged else copy.deepcopy(self.net)
        if self.freeze:
            self.teacher.requires_grad_(False)

    def configure_model(self) -> None:
        self._make("configure_model")

    def on_fit_start(self) -> None:
        self._make("on_fit_start")

    @property
    def average(self) -> nn.Module:
        return self.teacher.module if self.averaged else self.teacher

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            expected = self.average(batch[0])
        return super().training_step(batch, batch_idx) + 0.1 * nn.functional.mse_loss(self(batch[0]), expected)

    def on_train_batch_end(self, *_: Any) -> None:
        self.students.append({name: value.double().clone() for name, value in adapter_state_dict(self.net).items()})
        if self.averaged:
            self.teacher.update_parameters(self.net)
        else:
            for mine, other in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mine.data.mul_(DECAY).add_(other.data, alpha=1 - DECAY)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        every = self.net.parameters() if self.only_student else self.parameters()
        return torch.optim.AdamW([value for value in every if value.requires_grad], lr=0.02)


class Noted(Taught):
    def on_train_start(self) -> None:
        self.start = {name: value.clone() for name, value in adapter_state_dict(self.net).items()}


def fit(folder: Path, module: pl.LightningModule, *, pera: Any = None, **options: Any) -> pl.Trainer:
    torch.manual_seed(1)
    callback = PeraCallback(rank=2, adapter_dir=str(folder / "adapter"), **(pera or {}))
    path = options.pop("ckpt_path", None)
    trainer = make_trainer(folder, callback, **{"limit_val_batches": 0, **options})
    trainer.fit(module, ckpt_path=path, **SAFE_LOADING)
    return trainer


def check_average(module: Noted) -> None:
    """The teacher is the average of what the student was after its steps, from the same start."""
    first, *later = module.students
    teacher = {name: value.double() for name, value in adapter_state_dict(module.average).items()}
    assert teacher.keys() == first.keys()
    for name, value in teacher.items():
        # The first update of AveragedModel is no average.
        expected = first[name] if module.averaged else module.start[name].double() * DECAY + first[name] * (1 - DECAY)
        for student in later:
            expected = expected * DECAY + student[name] * (1 - DECAY)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, adapter_state_dict(module.net)[name].double()) for name, value in teacher.items())


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("only_student", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("where", ["__init__", "configure_model"])
def test_a_teacher_from_the_beginning(
    tmp_path: Path, where: str, freeze: bool, only_student: bool, averaged: bool
) -> None:
    module = Noted(where, freeze, only_student, averaged)
    trainer = fit(tmp_path, module)
    check_average(module)
    # The same layers in both: the head of neither.
    names = [name for name, _ in adapted_layers(module)]
    part = "teacher.module" if averaged else "teacher"
    assert names == ["net.0", "net.2", f"{part}.0", f"{part}.2"]
    held = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    assert held.keys() == adapter_state_dict(module).keys()
    # It is moved by hand alone.
    assert len(trainer.optimizers[0].state) == 6
    loaded = Taught(where, averaged=averaged)
    loaded.configure_model()
    load_adapter(loaded, tmp_path / "adapter")
    assert all(torch.equal(value, held[name]) for name, value in adapter_state_dict(loaded).items())


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_goes_on_with_its_teacher(tmp_path: Path, averaged: bool) -> None:
    whole, rest = Taught(averaged=averaged), Taught(averaged=averaged)
    fit(tmp_path / "whole", whole)
    half = fit(tmp_path / "half", Taught(averaged=averaged), max_epochs=1)
    fit(tmp_path / "rest", rest, ckpt_path=half.checkpoint_callback.best_model_path)
    expected = adapter_state_dict(whole)
    for name, value in adapter_state_dict(rest).items():
        # The loop rounds the teacher's base in every step, which no checkpoint holds.
        torch.testing.assert_close(value, expected[name])
    # The copy stays one in a second fit of the same module.
    before = len(whole.students)
    fit(tmp_path / "again", whole)
    assert len(whole.students) == before + 8
    assert not any(value.requires_grad for value in whole.teacher.parameters())


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("only_student", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_teacher_made_after_the_adapters(tmp_path: Path, freeze: bool, only_student: bool, averaged: bool) -> None:
    module = Noted("on_fit_start", freeze, only_student, averaged)
    with pytest.warns(UserWarning, match="'teacher' is a copy that was made after the adapters came(.|\n)*__init__"):
        trainer = fit(tmp_path, module)
    check_average(module)
    path = trainer.checkpoint_callback.best_model_path
    assert torch.load(path, weights_only=True)["state_dict"].keys() == adapter_state_dict(module).keys()
    assert [name for name, _ in adapted_layers(module)] == ["net.0", "net.2"]
    with pytest.warns(UserWarning, match="made after the adapters came"):
        fit(tmp_path / "rest", Taught("on_fit_start", averaged=averaged), ckpt_path=path, max_epochs=3)
    load_adapter(Regressor(), tmp_path / "adapter")


def test_what_is_trained_whole_moves_too(tmp_path: Path) -> None:
    module = Noted()
    trainer = fit(tmp_path, module, pera={"modules_to_save": ["net.3"]})
    check_average(module)
    held = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    assert {"net.3.weight", "teacher.3.weight"} <= held.keys()
    assert not torch.equal(held["net.3.weight"], held["teacher.3.weight"])


class Preferring(pl.LightningModule):
    """Preference optimisation: the reference is the model before training."""

    def __init__(self, reference_first: bool = False, only_policy: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            policy = tiny_llama()
        reference = copy.deepcopy(policy).requires_grad_(False)
        if reference_first:
            self.reference, self.policy = reference, policy
        else:
            self.policy, self.reference = policy, reference
        self.only_policy = only_policy

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            base = self.reference(input_ids=batch[0]).logits
        return -(self.policy(input_ids=batch[0]).logits - base)[..., 0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        part = self.policy if self.only_policy else self
        return torch.optim.AdamW([value for value in part.parameters() if value.requires_grad], lr=0.01)

    def train_dataloader(self) -> Any:
        torch.manual_seed(5)
        rows = torch.utils.data.TensorDataset(token_ids(8))
        return torch.utils.data.DataLoader(rows, batch_size=4)


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
@pytest.mark.parametrize("reference_first", [False, True])
@pytest.mark.parametrize("only_policy", [False, True])
def test_a_reference_model_stays_what_it_was(tmp_path: Path, reference_first: bool, only_policy: bool) -> None:
    module = Preferring(reference_first, only_policy)
    ids = token_ids()
    with torch.no_grad():
        before = module.reference(input_ids=ids).logits
    trainer = fit(tmp_path, module, pera={"skip_checks": ["head"]})
    with torch.no_grad():
        assert torch.equal(module.reference(input_ids=ids).logits, before)
        trained = module.policy(input_ids=ids).logits
    assert not torch.equal(trained, before)
    # The folder is the policy's, and loads into the plain model; that of a checkpoint too.
    consolidate(trainer.checkpoint_callback.best_model_path, tmp_path / "consolidated")
    for folder in ("adapter", "consolidated"):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            plain = tiny_llama()
        load_adapter(plain, tmp_path / folder)
        with torch.no_grad():
            assert torch.equal(plain(input_ids=ids).logits, trained)


class Twins(Regressor):
    """Two networks that begin alike and are both trained."""

    def __init__(self) -> None:
        super().__init__()
        self.other = copy.deepcopy(self.net)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return super().training_step(batch, batch_idx) + nn.functional.mse_loss(self.other(x), -y)


def test_twins_are_both_trained_and_saved(tmp_path: Path) -> None:
    module = Twins()
    fit(tmp_path, module)
    loaded = Twins()
    load_adapter(loaded, tmp_path / "adapter")
    tensors = adapter_state_dict(loaded)
    assert [name for name, _ in adapted_layers(module)] == ["net.0", "net.2", "other.0", "other.2"]
    assert all(torch.equal(value, tensors[name]) for name, value in adapter_state_dict(module).items())
    assert not torch.equal(tensors["net.0.pera_B"], tensors["other.0.pera_B"])


class TwinsWithAdapters(Twins):
    """Whose adapters were there before the copy."""

    def __init__(self) -> None:
        Regressor.__init__(self)
        inject_adapter(self.net, PeraConfig(2))
        self.other = copy.deepcopy(self.net)


def test_a_copy_with_adapters_is_trained_where_an_optimizer_has_it(tmp_path: Path) -> None:
    module = TwinsWithAdapters()
    fit(tmp_path, module)
    tensors = adapter_state_dict(module)
    assert not torch.equal(tensors["net.0.pera_B"], tensors["other.0.pera_B"])
    # Without a Trainer a copy is a part like any other.
    save_adapter(module, tmp_path / "by hand")
    loaded = TwinsWithAdapters()
    load_adapter(loaded, tmp_path / "by hand")
    assert torch.equal(loaded.other[0].pera_B, module.other[0].pera_B)


def test_what_is_a_copy() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    other = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    constant = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)]
    for part in constant:
        nn.init.ones_(part[0].weight)
        nn.init.ones_(part[0].bias)
    parts = {"net": net, "other": other, "copy": copy.deepcopy(net), "same": net, "ones": constant[0]}
    model = nn.ModuleDict({**parts, "more": constant[1], "tail": nn.ModuleList([copy.deepcopy(other)])})
    assert exact_copies(model) == {"copy": "net", "tail.0": "other"}
    with torch.no_grad():
        model["copy"][1][0].weight[2, 3] += 1e-6
    assert exact_copies(model) == {"tail.0": "other"}
    assert exact_copies(tiny_llama()) == {}
