from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pera_lightning import AdapterPictures, PeraCallback
from pera_lightning.callback import adapter_pictures
from pera_lightning.errors import ConfigError, TrainingError
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor


def images(logger: TensorBoardLogger) -> dict[str, list[int]]:
    """Name of a picture -> the steps it was logged at."""
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    return {name: [event.step for event in events.Images(name)] for name in events.Tags()["images"]}


def fit(folder: Path, logger: Any, *callbacks: Any, **options: Any) -> None:
    make_trainer(folder, *callbacks, logger=logger, enable_checkpointing=False, **options).fit(Regressor())


def test_tensorboard_gets_them_every_so_many_epochs(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, logger, AdapterPictures(every_n_epochs=2), PeraCallback(rank=2), max_epochs=4)
    names = ("adapter/spectrum", "adapter/parts", "adapter/coefficients")
    assert images(logger) == {name: [8, 16] for name in names}


def test_no_coefficients_at_order_one(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, [CSVLogger(tmp_path), logger], PeraCallback(rank=2, order=1), AdapterPictures(), max_epochs=1)
    assert images(logger) == {"adapter/spectrum": [4], "adapter/parts": [4]}


def test_weights_and_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    monkeypatch.setattr(WandbLogger, "__init__", lambda self: None)
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, name, images, step: logged.append((name, step)))
    adapter_pictures._log(WandbLogger(), "adapter/parts", object(), 7)
    assert logged == [("adapter/parts", 7)]


def test_nowhere_to_log_to(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nowhere to log to"):
        fit(tmp_path, CSVLogger(tmp_path), PeraCallback(rank=2), AdapterPictures(), max_epochs=1)


def test_options() -> None:
    with pytest.raises(ConfigError, match="every_n_epochs"):
        AdapterPictures(0)


def test_refused_where_layers_are_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_pictures, "is_flattened", lambda module: True)
    with pytest.raises(TrainingError, match="FSDPStrategy"):
        AdapterPictures().on_fit_start(SimpleNamespace(loggers=[]), Regressor())
