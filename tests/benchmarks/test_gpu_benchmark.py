"""The measurements on a GPU, tried on a CPU: every row ends in figures or a reason, and the page says which."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import card, estimated_memory, measuring, plan, report, results, shapes
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.largest_batch import bounds, step_fits
from benchmarks.gpu.measuring import UNREACHED, Budget
from benchmarks.gpu.plan import STEP, Row
from benchmarks.gpu.random_models import adapted, base_bytes, build, share
from benchmarks.gpu.rounds import LEAST, MOST, in_turns, ratio
from benchmarks.gpu.session import Session, SkippedError
from pera_lightning.injection import stored_bytes
from tests.conftest import ROOT
from tests.recipes.test_configs import ARCHITECTURES, GPU_CONFIGS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

GB = 2**30
CPU = torch.device("cpu")
KEYS = {"date", "commit", "card", "memory_gb", "driver", "cuda", "python", "versions", "launch_us", "kernels", "rows"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a trial of the whole program leaves."""
    folder = tmp_path_factory.mktemp("gpu")
    main(["--tiny", "--out", str(folder)])
    return folder


@pytest.fixture
def session() -> Session:
    return Session(CPU, is_tiny=True, seconds=0)


def step_row(**changes: Any) -> Row:
    return Row("step", {**STEP, **plan.TINY, **changes}, 0)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    session: Session,
    rows: list[Row],
    measure: Callable[..., dict[str, Any]],
    seconds: float = 60,
) -> list[dict[str, Any]]:
    """The rows as they were last saved, where every step is measured by `measure`."""
    monkeypatch.setitem(measuring.PARTS, "step", measure)
    saved: list[str] = []
    list(measuring.run(rows, session, Budget(seconds), lambda rows: saved.append(json.dumps(rows))))
    assert len(saved) == len(rows) + 1
    assert all(row["reason"] == UNREACHED for row in json.loads(saved[0]))
    return json.loads(saved[-1])


def test_a_trial_measures_every_row(folder: Path) -> None:
    [path] = folder.glob("*.json")
    found = json.loads(path.read_text())
    assert found.keys() >= KEYS
    assert [row["name"] for row in found["rows"]] == [row.name for row in plan.rows(is_tiny=True)]
    assert [row for row in found["rows"] if "figures" not in row] == []
    for row in found["rows"]:
        title, columns = report.COLUMNS[row["part"]]
        assert row["figures"].keys() >= set(columns.values()), title
    page = (folder / "gpu.md").read_text()
    assert page == report.page(results.read(folder))
    assert all(row["name"] in page for row in found["rows"])
    assert (folder / report.PICTURE).is_file()


def test_the_trial_counts_memory_as_estimate_does(folder: Path) -> None:
    [found] = results.read(folder)
    shares = [row["figures"]["measured_over_estimated"] for row in found["rows"] if row["part"] == "estimate"]
    assert len(shares) == 6
    assert all(0.9 < share < 1.1 for share in shares)


def test_the_page_in_the_repository_holds_the_results_there() -> None:
    found = results.read(results.FOLDER)
    assert (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == report.page(found)
    assert all(not result["is_tiny"] for result in found)


def test_the_page_says_whether_kernels_were_measured() -> None:
    [*_, first] = results.read(results.FOLDER)
    assert first["commit"] == "5821ae6"
    with_kernels = {**first, "kernels": "used", "date": "2099-01-01"}
    assert "have not been measured" in report.page([first])
    assert "have not been measured" not in report.page([with_kernels, first])


def test_a_failure_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    ends: list[Any] = [
        ValueError("no such thing"),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        {"ratio": 1.0},
    ]

    def measure(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    failed, full, good = measured(monkeypatch, session, [step_row(rank=rank) for rank in (1, 2, 3)], measure)
    assert failed["reason"] == "failed: ValueError: no such thing"
    assert full["reason"].startswith("out of memory: ")
    assert good["figures"] == {"ratio": 1.0}
    assert "reason" not in good
    result = {**results.read(results.FOLDER)[-1], "rows": [failed, full, good]}
    assert "no such thing" in report.page([result])


def test_rows_that_the_time_does_not_reach_are_named(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    rows = [step_row(), step_row(rank=16)._replace(seconds=100)]
    first, second = measured(monkeypatch, session, rows, lambda *_: {"ratio": 1.0})
    assert "figures" in first
    assert "it takes 100 s at least" in second["reason"]


def test_a_row_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    outer = signal.getitimer(signal.ITIMER_REAL)[0]

    def measure(*_: Any) -> dict[str, Any]:
        time.sleep(30)
        return {}

    [row] = measured(monkeypatch, session, [step_row()], measure, seconds=0.2)
    assert "the time was over" in row["reason"]
    assert row["took_s"] < 5
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (outer > 0)


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    monkeypatch.setattr(card, "free", lambda device: 10 * 2**30)
    whole, four = shapes.SHAPES["llama3-8b"], "nf4-dq"
    with pytest.raises(SkippedError, match="weights take 15"):
        session.check_fits(whole, None)
    session.check_fits(whole, four)
    with pytest.raises(SkippedError, match="logits"):
        session.check_fits(whole, four, tokens=16 * 1024)


def test_a_model_that_nobody_knows_is_named(tmp_path: Path) -> None:
    config = tmp_path / "qpera_other.yaml"
    config.write_text("model: {init_args: {pretrained: nobody/nothing}}")
    with pytest.raises(SkippedError, match="nobody/nothing is not known offline"):
        estimated_memory.known_architecture(config)


def test_without_a_gpu_only_a_trial_runs() -> None:
    with pytest.raises(SystemExit, match="no GPU that torch can use"):
        main([])


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no result in"):
        main(["report", "--out", str(tmp_path)])


def test_the_shapes_are_those_of_the_published_models() -> None:
    assert {name: shapes.PUBLISHED[name] for name in ARCHITECTURES} == ARCHITECTURES
    assert all(estimated_memory.known_architecture(path) for path in GPU_CONFIGS)


@pytest.mark.parametrize("quantization", [None, "nf4-dq"])
def test_copies_share_the_weights(quantization: str | None) -> None:
    architecture = shapes.tiny(shapes.SHAPES["llama3-8b"])
    base = build(architecture, CPU, quantization=quantization)
    buffers = sum(value.nbytes for value in base.buffers())
    assert base_bytes(architecture, quantization) == pytest.approx(stored_bytes(base) - buffers, rel=1e-3)
    own = {value.data_ptr() for value in base.parameters()}
    copy = share(base)
    assert copy is not base
    assert {value.data_ptr() for value in copy.parameters()} == own
    settings = {**STEP, "quant": quantization, "dropout": 0.0}
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = base(ids).logits
        for kind in ("base", "lora", "pera"):
            # A fresh adapter changes nothing.
            torch.testing.assert_close(adapted(base, kind, settings)(ids).logits, expected)


def test_a_tied_head_stays_tied() -> None:
    model = build(shapes.tiny(shapes.SHAPES["llama3.2-1b"]), CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("limit", "expected"), [(0, (0, 8)), (7, (0, 8)), (100, (96, 100)), (64, (64, 68))])
def test_the_largest_batch_is_found(limit: int, expected: tuple[int, int]) -> None:
    low, high = bounds(lambda batch: batch <= limit, 8, 1024, lambda: False)
    assert low <= limit < high
    assert high - low <= max(1, high // 16) or low == 0


def test_the_search_ends_with_the_time_and_at_the_limit() -> None:
    assert bounds(lambda batch: True, 8, 64, lambda: False) == (64, None)
    late = iter([False, False, True])
    assert bounds(lambda batch: True, 8, 1024, lambda: next(late)) == (16, None)


@pytest.mark.parametrize(
    ("error", "runs_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_memory_that_runs_out_bounds_the_batch(
    monkeypatch: pytest.MonkeyPatch, session: Session, error: Exception, runs_out: bool
) -> None:
    model = adapted(session.base("smollm2-135m"), "pera", STEP)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("benchmarks.gpu.step_time.Step.__call__", fail)
    if runs_out:
        assert not step_fits(session, model, (1, 4))
    else:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            step_fits(session, model, (1, 4))


def test_rounds_end_with_the_time() -> None:
    now = iter(range(10_000))
    times = in_turns(CPU, {"a": int, "b": int}, 0.0, lambda: float(next(now)))
    assert [len(each) for each in times.values()] == [LEAST, LEAST]
    assert ratio(times, "a", "b") == 1.0
    assert len(in_turns(CPU, {"a": int}, 1e9, lambda: float(next(now)))["a"]) == MOST


class FakeCuda:
    """The calls to torch.cuda that tell about a card of 24 GB with 6 of them in use."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.allocated, self.most = 4 * GB, 0
        answers: dict[str, Any] = {
            "get_device_name": "NVIDIA Thing 4",
            "get_device_capability": (8, 9),
            "get_device_properties": SimpleNamespace(total_memory=24 * GB),
            "mem_get_info": (18 * GB, 24 * GB),
            "memory_reserved": 6 * GB,
            "synchronize": None,
            "empty_cache": None,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patch.setattr(torch.cuda, "memory_allocated", lambda _: self.allocated)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.most)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "most", self.allocated))


def test_what_a_card_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = FakeCuda(monkeypatch), torch.device("cuda", 0)
    assert card.free(device) == 20 * GB
    assert card.peak(device, lambda: setattr(fake, "most", 9 * GB)) == 5 * GB
    monkeypatch.setattr(card, "launch_microseconds", lambda _: 12.345)
    monkeypatch.setattr(card, "kernels", lambda _: "used")
    header = card.described(device)
    assert (header["card"], header["memory_gb"], header["capability"]) == ("NVIDIA Thing 4", 24.0, [8, 9])
    assert "NVIDIA Thing 4 (24 GB)" in report.described(header)


def test_a_second_run_of_a_day_has_a_file_of_its_own(tmp_path: Path) -> None:
    header = {"date": "2026-12-01", "card": "NVIDIA GeForce RTX 4090", "kernels": "used"}
    for name in ("2026-12-01_nvidia-geforce-rtx-4090.json", "2026-12-01_nvidia-geforce-rtx-4090_2.json"):
        path = results.new_path(tmp_path, header)
        assert path.name == name
        results.write(path, header, [])
    assert [result["card"] for result in results.read(tmp_path)] == 2 * ["NVIDIA GeForce RTX 4090"]
