"""Accumulated gradients and those of several processes weighed batches, where tokens (rows) are to weigh alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from pera_lightning import PeraSequenceClassifier
from pera_lightning.data.collate import collate_packs
from tests.support.accumulation import (
    PARTS,
    ByHand,
    Foreign,
    Gradients,
    Recorded,
    Recording,
    batches_of,
    fit,
    fit_foreign,
    gradients_of,
    right,
    right_foreign,
)
from tests.support.causal_fits import loader
from tests.support.classifiers import save_encoder
from tests.support.pretrained import save_pretrained
from tests.support.processes import run_script

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulation")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    return folder


def difference(found: Gradients, expected: Gradients) -> float:
    """Relative, over all parameters together."""
    assert found.keys() == expected.keys()
    parts = [(found[name] - value, value) for name, value in expected.items()]
    off, size = (torch.cat([part[index].flatten().double() for part in parts]).norm() for index in range(2))
    assert size > 0
    return float(off / size)


def check(found: dict[str, Any], expected: list[tuple[Gradients, float]], close: float = 1e-5) -> None:
    assert len(found["steps"]) == len(found["losses"]) == len(expected)
    for step, logged, (gradients, loss) in zip(found["steps"], found["losses"], expected, strict=True):
        assert difference(step, gradients) <= close
        assert logged == pytest.approx(loss, rel=close)


@pytest.mark.parametrize(("size", "batches"), [(4, 1), (2, 2), (1, 4)], ids=["1x4", "2x2", "4x1"])
def test_however_a_step_is_cut(folder: Path, tmp_path: Path, size: int, batches: int) -> None:
    module = Recorded(folder / "model", [batches_of([0, 1, 2, 3], size)])
    check(fit(tmp_path, module, accumulate_grad_batches=batches), [right(folder / "model", [0, 1, 2, 3])])


def test_the_last_shorter_step_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    module = Recorded(folder / "model", [batches_of([0, 1, 2, 3, 4, 5], 1)])
    expected = [right(folder / "model", rows) for rows in ([0, 1, 2, 3], [4, 5])]
    check(fit(tmp_path, module, accumulate_grad_batches=4), expected)


@pytest.mark.parametrize("batches", [1, 4])
def test_clipped_is_the_right_gradient(folder: Path, tmp_path: Path, batches: int) -> None:
    module = Recorded(folder / "model", [batches_of([0, 1, 2, 3], 4 // batches)])
    found = fit(tmp_path, module, accumulate_grad_batches=batches, gradient_clip_val=0.01)
    check(found, [right(folder / "model", [0, 1, 2, 3], clip=0.01)])


def test_a_schedule_of_accumulation(folder: Path, tmp_path: Path) -> None:
    module = Recorded(folder / "model", [batches_of([0, 1, 2], 1)])
    found = fit(tmp_path, module, GradientAccumulationScheduler({0: 2, 1: 3}), max_epochs=2)
    check(found, [right(folder / "model", rows) for rows in ([0, 1], [2], [0, 1, 2])])


def test_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    module = Recorded(folder / "model", [batches_of([0, 1, 2, 3], 1)])
    found = fit(tmp_path, module, accumulate_grad_batches=4, precision="bf16-mixed")
    # As far as one row alone, which is in no accumulation, is off.
    alone = fit(tmp_path, Recorded(folder / "model", [batches_of([3], 1)]), precision="bf16-mixed")
    rounded = difference(alone["steps"][0], right(folder / "model", [3])[0])
    check(found, [right(folder / "model", [0, 1, 2, 3])], close=2 * rounded)
    assert rounded < 0.02


@pytest.mark.parametrize("clip", [None, 0.01])
def test_under_the_loss_scale_of_float16(folder: Path, tmp_path: Path, clip: float | None) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    module = Recorded(folder / "model", [batches_of([0, 1, 2, 3], 1)])
    found = fit(tmp_path, module, accumulate_grad_batches=4, plugins=[plugin], gradient_clip_val=clip)
    check(found, [right(folder / "model", [0, 1, 2, 3], clip)], close=5e-3)
    # Not one step was skipped.
    assert scaler.get_scale() == 2.0**10
    assert scaler.state_dict()["_growth_tracker"] == 1


@pytest.mark.parametrize("chunked", [True, False])
def test_packed_rows(folder: Path, tmp_path: Path, chunked: bool) -> None:
    alone = [batches_of([row], 1)[0] for row in range(6)]
    packs = [[0, 1, 2], [3], [4, 5]]
    batches = [collate_packs([[{name: alone[row][name][0] for name in alone[row]} for row in pack]]) for pack in packs]
    module = Recorded(folder / "model", [batches])
    unchunked = [] if chunked else [UnfreezeHead()]
    found = fit(tmp_path, module, *unchunked, accumulate_grad_batches=3)
    assert module._chunks_loss
    if not chunked:
        assert found["steps"][0].pop("model.lm_head.weight").any()
    check(found, [right(folder / "model", list(range(6)))])


class UnfreezeHead(pl.Callback):
    """Then the whole logits are computed."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        module.model.lm_head.weight.requires_grad_()


class RecordedClassifier(Recording, PeraSequenceClassifier):
    """Of sentences of some words."""


def sentences(labels: list[float]) -> dict[str, Tensor]:
    ids = torch.randint(6, 40, (len(labels), 5), generator=torch.Generator().manual_seed(int(10 * sum(labels))))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}


@pytest.mark.parametrize(("classes", "parts"), [(3, [[0, 2, 1], [2]]), (1, [[0.5, 2.5, 1.0], [4.0]])])
@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero:UserWarning")
def test_the_rows_of_a_classifier(tmp_path: Path, classes: int, parts: list[list[float]]) -> None:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    batches = [sentences(part) for part in parts]
    module = RecordedClassifier(save_encoder(tmp_path / "bert", **quiet), num_labels=classes)
    module.train_dataloader = module.val_dataloader = lambda: loader(batches)  # type: ignore[method-assign]
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 2, "num_sanity_val_steps": 0}
    found = fit(tmp_path, module, **options)

    module.zero_grad()
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    labels = rows.pop("labels")
    logits = module.model.train()(**rows).logits
    loss = F.mse_loss(logits.squeeze(-1), labels) if classes == 1 else F.cross_entropy(logits, labels)
    loss.backward()
    check(found, [(gradients_of(module), loss.item())])
    assert found["metrics"]["val_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_somebodys_module(tmp_path: Path) -> None:
    found = fit_foreign(tmp_path, Foreign([[3, 9, 1, 0, 4]]), accumulate_grad_batches=2)
    check(found, [right_foreign([3, 9]), right_foreign([1]), right_foreign([4])])


def test_optimized_by_hand(tmp_path: Path) -> None:
    for clip in (None, 0.01):
        found = fit_foreign(tmp_path, ByHand([[3, 9, 1, 4]], clip))
        expected = [right_foreign(lengths, clip) for lengths in ([3, 9], [1, 4])]
        off = [difference(step, right) for step, (right, _) in zip(found["steps"], expected, strict=True)]
        assert max(off) <= 1e-5


@pytest.fixture(scope="module")
def processes(folder: Path) -> Path:
    run_script("tests.support.accumulation", folder, processes=2)
    return folder


FIRST_TWO, LAST = [0, 1, 3, 4], [2, 5]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("ddp 1", [[0, 1, 2, 3, 4, 5]]),
        ("ddp 2", [FIRST_TWO, LAST]),
        ("fsdp1 2", [FIRST_TWO, LAST]),
        ("fsdp2 2", [FIRST_TWO, LAST]),
        ("tensor 2", [PARTS[0][:2], PARTS[0][2:]]),
    ],
)
def test_in_two_processes(processes: Path, name: str, steps: list[list[int]], rank: int) -> None:
    found = torch.load(processes / f"{name}-{rank}.pt", weights_only=True)
    check(found, [right(processes / "model", rows) for rows in steps])


@pytest.mark.parametrize("name", ["ddp clipped", "fsdp2 clipped"])
def test_clipped_is_the_right_gradient_in_two_processes(processes: Path, name: str) -> None:
    found = torch.load(processes / f"{name}-0.pt", weights_only=True)
    check(found, [right(processes / "model", [0, 1, 2, 3, 4, 5], clip=0.01)])


def test_somebodys_module_in_two_processes(processes: Path) -> None:
    found = [torch.load(processes / f"ddp foreign-{rank}.pt", weights_only=True) for rank in range(2)]
    for part in found:
        check(part, [right_foreign([3, 9, 1, 4])])
    check(torch.load(processes / "ddp empty-1.pt", weights_only=True), [right_foreign([3])])


def test_by_hand_in_two_processes(processes: Path) -> None:
    for rank in range(2):
        (step,) = torch.load(processes / f"by hand-{rank}.pt", weights_only=True)["steps"]
        assert difference(step, right_foreign([3, 9, 1, 4], clip=0.01)[0]) <= 1e-5


def test_the_validation_loss_of_two_processes_is_over_all_tokens(processes: Path) -> None:
    _, loss = right(processes / "model", [0, 1, 4])
    for rank in range(2):
        metrics = torch.load(processes / f"ddp 2-{rank}.pt", weights_only=True)["metrics"]
        assert metrics["val_loss"] == pytest.approx(loss, rel=1e-6)
