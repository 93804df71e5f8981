from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pera_lightning.analysis.loss_curve import is_loss_curve, plot_loss_curve, smoothed


def test_draws_a_picture(tmp_path: Path) -> None:
    metrics = "epoch,step,train_loss,val_loss\n0,1,2.0,\n0,2,1.5,\n0,2,,1.2\n"
    picture = plot_loss_curve(metrics, tmp_path / "loss_curve.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000
    assert is_loss_curve(picture)
    # Others of matplotlib are none.
    figure = Figure()
    figure.savefig(tmp_path / "mine.png")
    assert not is_loss_curve(tmp_path / "mine.png")


def test_means_do_not_lag() -> None:
    assert smoothed([2.0] * 30) == pytest.approx([2.0] * 30)
    straight = [3.0 - step / 100 for step in range(200)]
    means = smoothed(straight)
    assert means[0] == straight[0]
    # Where the loss falls evenly its mean is the loss; at the end it is that of the last twentieth.
    assert means[:190] == pytest.approx(straight[:190])
    assert means[-1] == pytest.approx(sum(straight[-11:]) / 11)
    # Too short to smooth.
    assert smoothed([2.0, 1.0]) == [2.0, 1.0]
    assert smoothed([]) == []


def drawn(losses: list[float], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Axes:
    """The axes of the picture of these losses."""
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: (kept.append(self), Path(path).touch()))
    lines = [f"0,{step},{loss},\n" for step, loss in enumerate(losses)]
    plot_loss_curve("epoch,step,train_loss,val_loss\n" + "".join(lines), folder / "curve.png")
    return kept[0].axes[0]


def test_the_axis_fits_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A rare spike does not press all others together.
    axes = drawn([2.4 - step / 1000 for step in range(100)] + [40.0, math.nan] + [2.3] * 100, monkeypatch, tmp_path)
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "linear"
    assert 2.2 < low < 2.3
    assert high < 7
    axes = drawn([3 * 0.9**step for step in range(60)], monkeypatch, tmp_path)
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[1] > 3
    assert axes.get_ylim()[0] < 3 * 0.9**58
    assert list(axes.lines[0].get_xdata()) == list(range(1, 61))
    assert axes.get_title() == "Loss while training"


def test_a_picture_without_a_training_loss_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes = drawn([], monkeypatch, tmp_path)
    assert axes.get_title() == "No training loss was logged: lower log_every_n_steps (50 by default)"


def test_a_run_without_losses_draws_an_empty_picture(tmp_path: Path) -> None:
    assert plot_loss_curve("epoch,step,other\n0,1,2.0\n", tmp_path / "curve.png").is_file()
