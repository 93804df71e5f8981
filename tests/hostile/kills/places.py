"""Places that are written, in two states each, and how either is recognised."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.hostile.mutations.tensors import read_tensors
from tests.hostile.readers.adapters import network, run

ABSENT = "nothing"


@dataclass(frozen=True)
class Place:
    """A folder that is written.

    Attributes:
        name: As the table says it.
        write: Writes one of the states, 0 or 1, into a folder, with what the process has that is below another folder.
        read: What is in the folder, as a hash of what it computes; raises whatever comes where that is nothing.
        over: Whether state 0 is there before state 1 is written.
        prepare: Writes what `write` needs into that other folder.
        warm: Before the process forks.
    """

    name: str
    write: Callable[[Path, int, Path], None]
    read: Callable[[Path], str]
    over: bool = True
    prepare: Callable[[Path], None] = lambda folder: None
    warm: Callable[[], None] = lambda: None


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def _bytes(value: torch.Tensor) -> bytes:
    return value.detach().double().contiguous().numpy().tobytes()


@cache
def _adapted(which: int) -> Any:
    """Of the same shapes: the weights of one would load beside the options of the other."""
    from pera_lightning import PeraConfig, inject_adapter
    from tests.support.models import randomise_adapter

    with torch.random.fork_rng():
        torch.manual_seed(which)
        model = network()
        # Large enough to be written in more than one piece.
        inject_adapter(model, PeraConfig(8, 3, alpha=which + 1, target_modules=["first", "middle"]))
        randomise_adapter(model, 0.1)
    return model


def save(folder: Path, which: int, given: Path) -> None:
    from pera_lightning import save_adapter

    save_adapter(_adapted(which), folder)


def load(folder: Path) -> str:
    from pera_lightning import load_adapter

    model = network()
    load_adapter(model, folder)
    return _hash(_bytes(run(model)))


def export(folder: Path, which: int, given: Path) -> None:
    from pera_lightning import export_lora

    export_lora(given / str(which), folder)


def save_both(given: Path) -> None:
    for which in (0, 1):
        save(given / str(which), which, given)


def read_lora(folder: Path) -> str:
    """Code that knows nothing of the package reads it, as PEFT does."""
    from pera_lightning.errors import ExportError

    if not any(folder.glob("*.safetensors")) or not (folder / "adapter_config.json").is_file():
        raise ExportError("There is no export.", got=folder, expected="files", fix="write it")
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), read_tensors(_one(folder))
    report = json.loads((folder / "export_report.json").read_text())
    # An export that was written says so last of all.
    assert report["to"] == "peft"
    scaling = config["lora_alpha"] / config["r"]
    return _hash(*(_bytes(scaling * tensors[name]) for name in sorted(tensors)), str(report["rank"]).encode())


def _one(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def consolidate(folder: Path, which: int, given: Path) -> None:
    from pera_lightning.checkpoint.training.consolidation import consolidate as write

    write(given / f"{which}.ckpt", folder)


def fit_both(given: Path) -> None:
    for which in (0, 1):
        _fit(given / f"run{which}", given / f"adapter{which}", which)
        shutil.copy(given / f"run{which}/checkpoints/last.ckpt", given / f"{which}.ckpt")


def _fit(root: Path, adapter: Path, which: int) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from pera_lightning import PeraCallback
    from tests.support.callback_fits import make_trainer
    from tests.support.models import Regressor

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    shutil.rmtree(root, ignore_errors=True)
    checkpoint = ModelCheckpoint(root / "checkpoints", save_last=True, every_n_train_steps=2)
    callback = PeraCallback(rank=2, alpha=which + 1, target_modules=["net.0", "net.2"], adapter_dir=str(adapter))
    make_trainer(root, callback, checkpoint, max_epochs=1, limit_val_batches=0).fit(Regressor())


def fit(folder: Path, which: int, given: Path) -> None:
    _fit(folder.parent / "run", folder, which)


def load_regressor(folder: Path) -> str:
    """Also: every checkpoint beside it becomes an adapter, or is refused."""
    from pera_lightning import load_adapter
    from pera_lightning.checkpoint.training.consolidation import consolidate as write
    from pera_lightning.errors import PeraError
    from tests.support.models import Regressor

    for path in folder.parent.glob("run/checkpoints/*.ckpt"):
        with contextlib.suppress(PeraError):
            write(path, folder.parent.parent / "consolidated")
    module = Regressor()
    load_adapter(module, folder)
    with torch.no_grad():
        return _hash(_bytes(module(torch.linspace(-1, 1, 24).reshape(4, 6))))


def evaluate(folder: Path, which: int, given: Path) -> None:
    from pera_lightning.evaluation.results import Evaluation, Prediction

    rows = [Prediction(f"question {which} {i}", "true", ["true", "false"][(i + which) % 2]) for i in range(50)]
    tasks = ["boolq", "piqa", "openbookqa"] if which else ["boolq", "piqa", "winogrande"]
    Evaluation("rank", dict.fromkeys(tasks, rows), 1.0).write(folder, {"adapter": f"number {which}"})


def read_files(folder: Path) -> str:
    """All files together, but those of others."""
    from tests.hostile.kills.killing import OTHERS

    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in OTHERS]
    shown = [path for path in paths if not path.name.startswith(".")]
    if not shown:
        return ABSENT
    return _hash(*(path.name.encode() + path.read_bytes() for path in shown))


def predict(folder: Path, which: int, given: Path) -> None:
    from pera_lightning.cli.fit.predictions import write_predictions

    write_predictions([[f"answer {which} {i}" for i in range(2000)]], folder / "predictions.jsonl")


@cache
def _figure(which: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=50)
    figure.text(0.5, 0.5, str(which))
    return figure


def draw(folder: Path, which: int, given: Path) -> None:
    """`inspect`, with pictures that are quick to draw."""
    from pera_lightning.analysis import plots
    from pera_lightning.cli.inspect import inspect

    names = ["spectrum", "parts", "coefficients"] if which else ["spectrum", "parts"]
    plots.plot_inspection = lambda found: {name: _figure(which) for name in names}
    with contextlib.redirect_stdout(None):
        inspect(str(given / str(which)), str(folder), interactions=False)


def merge(folder: Path, which: int, given: Path) -> None:
    from pera_lightning import export_merged

    export_merged(given / str(which), folder, base=str(given / "base"), compare=False)


def save_language_adapters(given: Path) -> None:
    from pera_lightning import PeraConfig, inject_adapter, save_adapter
    from tests.hostile.readers.adapters import llama
    from tests.support.models import randomise_adapter
    from tests.support.pretrained import save_pretrained

    save_pretrained(given / "base", llama())
    for which in (0, 1):
        model = llama()
        inject_adapter(model, PeraConfig(2, alpha=which + 1, target_modules=["q_proj"]))
        randomise_adapter(model)
        save_adapter(model, given / str(which), base_model=str(given / "base"))


def read_model(folder: Path) -> str:
    return _hash(*(_bytes(value) for _, value in sorted(read_tensors(folder / "model.safetensors").items())))


def _warm_adapters() -> None:
    for which in (0, 1):
        run(_adapted(which))


def _warm_fits() -> None:
    import pera_lightning
    import pera_lightning.checkpoint.training.consolidation
    import tests.support.callback_fits

    pera_lightning.PeraCallback  # noqa: B018 - imported late
    assert tests.support


def _warm_pictures() -> None:
    import matplotlib.backends.backend_agg

    import pera_lightning.analysis.plots
    import pera_lightning.cli.inspect

    _warm_adapters()
    for which in (0, 1):
        _figure(which)
    assert matplotlib
    assert pera_lightning


def _warm_evaluation() -> None:
    import pera_lightning.cli.fit.predictions
    import pera_lightning.evaluation.results  # noqa: F401


def _warm_merging() -> None:
    import pera_lightning.export.merged.merged_model  # noqa: F401
    from tests.hostile.readers.adapters import llama

    run(llama())


PLACES = {
    place.name: place
    for place in (
        Place("save_adapter over an adapter", save, load, warm=_warm_adapters),
        Place("save_adapter into a new folder", save, load, over=False, warm=_warm_adapters),
        Place("export_lora over an export", export, read_lora, prepare=save_both, warm=_warm_adapters),
        Place("export_lora into a new folder", export, read_lora, False, save_both, _warm_adapters),
        Place("export_merged", merge, read_model, False, save_language_adapters, _warm_merging),
        Place("consolidate", consolidate, load_regressor, prepare=fit_both, warm=_warm_fits),
        Place("fit with checkpoints", fit, load_regressor, warm=_warm_fits),
        Place("evaluate", evaluate, read_files, warm=_warm_evaluation),
        Place("inspect", draw, read_files, prepare=save_both, warm=_warm_pictures),
        Place("predict", predict, read_files, warm=_warm_evaluation),
    )
}
