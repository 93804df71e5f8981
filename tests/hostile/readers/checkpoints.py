"""Checkpoints of a Trainer, as files and as folders of several processes, and what reads them."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.files import replace_by_damaged
from tests.hostile.mutations.pickles import Runs, damage_checkpoint, damage_objects, evil_opcodes
from tests.hostile.outcomes import Changed, Wrong
from tests.hostile.readers.equations import check_close, state_of

NAME = "model.ckpt"
OPTIONS = {"rank": 2, "modules_to_save": ["net.3"], "target_modules": ["net.0", "net.2"]}


def _fit(folder: Path) -> Path:
    from pera_lightning import PeraCallback
    from tests.support.callback_fits import make_trainer
    from tests.support.models import Regressor

    torch.manual_seed(0)
    trainer = make_trainer(folder, PeraCallback(**OPTIONS), enable_checkpointing=False)
    trainer.fit(Regressor())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def prepare_file(folder: Path) -> None:
    warnings.simplefilter("ignore")
    path = _fit(folder.parent / "fit")
    (folder / "file").mkdir()
    shutil.copy(path, folder / "file" / NAME)


def prepare_folder(folder: Path) -> None:
    """What a strategy that shards the module writes, here by one process."""
    from torch.distributed.checkpoint import FileSystemWriter, save

    warnings.simplefilter("ignore")
    held = torch.load(_fit(folder.parent / "sharded-fit"), weights_only=False)
    state = {f"state_dict.{key}": value for key, value in held.pop("state_dict").items()}
    where = folder / "folder" / NAME
    where.mkdir(parents=True)
    save(state, storage_writer=FileSystemWriter(where), no_dist=True)
    torch.save(held, where / "meta.pt")


def damage_file(case: Case) -> str:
    return damage_checkpoint(case.random, case.given / NAME, case.canary)


def damage_folder(case: Case) -> str:
    folder = case.given / NAME
    path = case.random.choice(sorted(folder.iterdir()))
    if path.name == "meta.pt":
        return damage_checkpoint(case.random, path, case.canary)
    if path.name != ".metadata" or case.random.random() < 0.3:
        return replace_by_damaged(case.random, path)
    if case.random.random() < 0.4:
        held = path.read_bytes()
        path.write_bytes(held[:2] + evil_opcodes(case.random, case.canary) + held[2:])
        return ".metadata: opcodes that call something"
    return f".metadata: {_changed_metadata(case, path)}"


def _changed_metadata(case: Case, path: Path) -> str:
    held = pickle.loads(path.read_bytes())
    choice = case.random.randrange(4)
    name = case.random.choice(sorted(held.state_dict_metadata))
    entry = held.state_dict_metadata[name]
    if choice == 0:
        held.planner_data = Runs(case.canary, "open")
    elif choice == 1:
        entry.size = torch.Size(case.random.choice([[10**9, 10**3], [0], [2**40], [1, 1]]))
    elif choice == 2:
        held.state_dict_metadata[case.random.choice([name + "x", "state_dict.", "x"])] = held.state_dict_metadata.pop(
            name
        )
    else:
        parts = {"sizes": entry.chunks, "places": held.storage_data, "properties": vars(entry.properties)}
        what = case.random.choice(sorted(parts))
        if isinstance(parts[what], dict) and what == "properties":
            vars(entry.properties)["dtype"] = case.random.choice([torch.float64, torch.int64, torch.bool, "x", None])
        elif what == "places":
            info = held.storage_data[next(iter(held.storage_data))]
            vars(info).update(
                {case.random.choice(["offset", "length"]): case.random.choice([-1, 2**62, 0, 10**6, "x"])}
            )
            vars(info).update(case.random.choice([{}, {"relative_path": "../../../../etc/passwd"}]))
        else:
            damage_objects(case.random, {"chunks": entry.chunks})
    path.write_bytes(pickle.dumps(held))
    return f"{choice} of {name}"


def _tensors(case: Case) -> dict[str, Tensor]:
    """The adapter in the file, read without the package; for a folder that of the good one."""
    path = case.given / NAME
    held = torch.load(path if path.is_file() else case.good.parent / "file" / NAME, weights_only=True)
    return {key.removeprefix("net."): value for key, value in held["state_dict"].items()}


def _stored(case: Case) -> dict[str, Tensor] | None:
    """As `_tensors`, None where torch cannot read the file without making objects."""
    with contextlib.suppress(Exception):
        return {key: value for key, value in _tensors(case).items() if isinstance(value, Tensor)}
    return None


def consolidate(case: Case) -> None:
    """Into an adapter folder, from which the model is what the equations say; an earlier one stays if it is refused."""
    from pera_lightning import load_adapter, save_adapter
    from pera_lightning.checkpoint.training.consolidation import consolidate as write
    from tests.hostile.worker import contents

    out = case.out / "adapter"
    module = _module()
    _inject(module)
    save_adapter(module, out)
    before = contents(out)
    try:
        write(case.given / NAME, out)
    except BaseException as error:
        if contents(out) != before:
            raise Changed(f"{type(error).__name__}: {error}") from None
        raise
    fresh, plain = _module(), _module().double()
    load_adapter(fresh, out)
    plain.load_state_dict(state_of(_module(), out))
    check_close(_run(fresh), _run(plain.float()))
    _check_values(case, fresh)


def _inject(module: Any) -> None:
    from pera_lightning import PeraConfig, inject_adapter

    inject_adapter(module, PeraConfig(**OPTIONS))


def _module() -> Any:
    from tests.support.models import Regressor

    return Regressor()


def _run(module: Any) -> Tensor:
    with torch.no_grad():
        return module(torch.linspace(-1, 1, 24).reshape(4, 6))


def _check_values(case: Case, module: Any) -> None:
    from pera_lightning import adapter_state_dict

    stored = _stored(case)
    for key, value in adapter_state_dict(module).items():
        if not value.isfinite().all():
            raise Wrong(f"{key} is not finite")
        if stored is not None and not torch.equal(value, stored[key.removeprefix("net.")].float()):
            raise Wrong(f"{key} is not what the file holds")


def _trainer(case: Case, **options: Any) -> Any:
    from pera_lightning import PeraCallback
    from tests.support.callback_fits import make_trainer

    callback = PeraCallback(**OPTIONS, adapter_dir=str(case.out / "trained"))
    settings = {"enable_checkpointing": False, "max_epochs": 3, **options}
    return make_trainer(case.out / "run", callback, *settings.pop("callbacks", []), **settings)


def test(case: Case) -> None:
    """`trainer.test(ckpt_path=...)`, or validate or predict."""
    from tests.support.trainers import SAFE_LOADING

    module = _module()
    trainer = _trainer(case)
    call = case.random.choice(["test", "validate", "predict"])
    words = {"verbose": False} if call != "predict" else {"return_predictions": False}
    getattr(trainer, call)(module, ckpt_path=case.given / NAME, **words, **SAFE_LOADING)
    _check_values(case, module)


def resume(case: Case) -> None:
    """`trainer.fit(ckpt_path=...)`; what is refused leaves the module's own weights alone."""
    from tests.support.trainers import SAFE_LOADING

    module = _module()
    base = {key: value.clone() for key, value in module.state_dict().items()}
    _trainer(case).fit(module, ckpt_path=case.given / NAME, **SAFE_LOADING)
    for key, value in module.state_dict().items():
        if ".pera_" in key and not value.isfinite().all():
            raise Wrong(f"{key} is not finite after training")
        plain = key.replace(".base_layer", "")
        if ".pera_" not in key and "net.3" not in key and not torch.equal(value, base[plain]):
            raise Wrong(f"the frozen {key} has changed")


def finish(case: Case) -> None:
    """The end of a fit whose best checkpoint is the damaged one: the folder holds that, or the last weights."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from pera_lightning import adapter_state_dict, load_adapter

    class Damages(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            best = Path(trainer.checkpoint_callback.best_model_path)
            shutil.rmtree(best) if best.is_dir() else best.unlink()
            best.symlink_to(case.given / NAME)

    module = _module()
    checkpoint = ModelCheckpoint(case.out / "best", monitor="val_loss")
    options = {"callbacks": [checkpoint, Damages()], "enable_checkpointing": True, "max_epochs": 1}
    _trainer(case, **options).fit(module)
    last = adapter_state_dict(module)
    fresh = _module()
    load_adapter(fresh, case.out / "trained")
    written = adapter_state_dict(fresh)
    if all(torch.equal(value, last[key]) for key, value in written.items()):
        return
    stored = _stored(case) or {}
    for key, value in written.items():
        other = stored.get(key.removeprefix("net."))
        if other is None or not torch.equal(value, other.float()):
            raise Wrong(f"{key} in the folder is neither the last nor the best one")


def warm() -> None:
    import torch.distributed.checkpoint  # noqa: F401

    import pera_lightning.checkpoint.training.consolidation

    pera_lightning.PeraCallback  # noqa: B018 - imported late
    _run(_module())


READS = {"consolidate": consolidate, "test": test, "fit": resume, "the end of a fit": finish}
CHECKPOINT = Kind("checkpoint", prepare_file, damage_file, READS, 2, warm)
SHARDED = Kind("sharded checkpoint", prepare_folder, damage_folder, {"consolidate": consolidate}, None, warm)
