from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pera_lightning.analysis.loss_curve import _running_mean, is_loss_curve, plot_loss_curve


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


def test_running_mean() -> None:
    assert _running_mean([2.0] * 30) == pytest.approx([2.0] * 30)
    falling = _running_mean([2.0] * 30 + [1.0] * 30)
    assert falling[0] == 2.0
    assert 1.0 < falling[30] < 2.0
    assert falling[-1] == pytest.approx(1.0, abs=0.05)
    # Too short to smooth.
    assert _running_mean([2.0, 1.0]) == [2.0, 1.0]


def test_a_run_without_losses_draws_an_empty_picture(tmp_path: Path) -> None:
    assert plot_loss_curve("epoch,step,other\n0,1,2.0\n", tmp_path / "curve.png").is_file()
