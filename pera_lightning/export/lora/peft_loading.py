"""Whether PEFT puts all of an export where it belongs: it only warns of what it leaves out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.errors import ExportError, one_line
from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.lora.lora_losses import MERGE
from pera_lightning.export.lora.peft_format import read_peft
from pera_lightning.injection import marked_modules, remove_adapter
from pera_lightning.requirements import is_installed, require
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)

ADAPTER = "default"
"""What `PeftModel.from_pretrained` calls an adapter."""


def has_peft() -> bool:
    """Whether PEFT is installed.

    Raises:
        ConfigError: It is, but too old.
    """
    if not is_installed("peft"):
        return False
    require("Loading an export back with PEFT", "peft", instead="; or uninstall PEFT, to export without trying that")
    return True


def load_by_peft(base: nn.Module, folder: Path) -> nn.Module:
    """Load an export as anybody would, and look whether all of it arrived.

    Args:
        base: The plain base model, which PEFT changes.
        folder: Of the export.

    Returns:
        The `PeftModel`.

    Raises:
        ExportError: PEFT does not take the export, leaves out a part of it, or puts adapters into other layers.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        # What they say is found out below.
        warnings.simplefilter("ignore")
        try:
            exported = PeftModel.from_pretrained(base, folder)
        except Exception as error:  # whatever PEFT has against this kind of model
            raise _refusal(one_line(error)[:300]) from error
    _refuse_partial(exported, read_peft(folder))
    return exported


def try_peft(model: nn.Module, folder: Path) -> None:
    """The same for an adapted model, which stays as it is: PEFT gets its modules without their values.

    Raises:
        ExportError: See `load_by_peft`.
    """
    try:
        base = _hollow(model)
    except Exception as error:  # a module that cannot be copied; what it is made of is not ours
        logger.warning("Whether PEFT loads all of the export was not tried: %s", one_line(error))
        return
    load_by_peft(base, folder)


def _hollow(model: nn.Module) -> nn.Module:
    """A copy of the base without memory for its weights: each is one number, of the right shape."""
    whole = {id(value) for _, module in marked_modules(model) for value in module.parameters()}
    memo: dict[int, Any] = {}
    for value in (*model.parameters(), *model.buffers()):
        if id(value) not in whole:
            memo[id(value)] = _hollow_tensor(value)
    return remove_adapter(copy.deepcopy(model, memo))


def _hollow_tensor(value: Tensor) -> Tensor:
    if type(value) is not nn.Parameter:
        # Packed weights of quantised layers, and buffers: PEFT reads them and writes nothing.
        return value
    return nn.Parameter(torch.zeros((), dtype=value.dtype).expand(value.shape), requires_grad=False)


def _refuse_partial(exported: nn.Module, stored: StoredLora) -> None:
    layers, saved = dict(_layers(exported)), dict(_saved(exported))
    lost = [name for name, factors in stored.factors.items() if not _same_factors(layers.get(name), factors)]
    lost += [key for key, value in stored.saved.items() if not _same(saved.get(key), value)]
    more = sorted(layers.keys() - stored.factors.keys())
    if lost:
        raise _refusal(f"{_some(lost)} left out")
    if more:
        raise _refusal(f"adapters in layers that have none: {_some(more)}")


def _layers(exported: Any) -> Iterator[tuple[str, LoraFactors | None]]:
    from peft.tuners.lora import LoraLayer

    for name, module in exported.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, _factors(module)


def _factors(layer: Any) -> LoraFactors | None:
    if ADAPTER in layer.lora_embedding_A:
        down, up = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    elif ADAPTER in layer.lora_A:
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    else:
        return None
    return LoraFactors(down.detach() * layer.scaling[ADAPTER], up.detach())


def _saved(exported: Any) -> Iterator[tuple[str, Tensor]]:
    from peft.utils import ModulesToSaveWrapper

    base = exported.get_base_model()
    # A module that is named from the outermost one on is no copy: its own values are overwritten.
    yield from base.state_dict().items()
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and ADAPTER in module.modules_to_save:
            for key, value in module.modules_to_save[ADAPTER].state_dict().items():
                yield f"{name}.{key}", value


def _same_factors(found: LoraFactors | None, wanted: LoraFactors) -> bool:
    return found is not None and all(_same(own, other) for own, other in zip(found, wanted, strict=True))


def _same(found: Tensor | None, wanted: Tensor) -> bool:
    if found is None or found.shape != wanted.shape:
        return False
    # PEFT keeps them in the dtype of the base or in float32.
    return torch.equal(found.cpu(), wanted.to(found.dtype))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refusal(got: str) -> ExportError:
    from peft import __version__

    return ExportError(
        "PEFT would not apply all of this export.",
        got=f"{got} (PEFT {__version__})",
        expected="every tensor of the file in its layer",
        fix=MERGE,
    )
