"""Lightning's callbacks that average weights, brought to average the adapter alone.

`WeightAveraging` and `StochasticWeightAveraging` copy the whole module before the adapters are in it. Averaged with the
adapted one, its parameters would not match; and a copy of a large base costs its memory, rounds what is frozen (of a
4-bit base to nonsense), and ends up in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from pera_lightning.callback.frozen_norms import frozen_norms
from pera_lightning.errors import TrainingError
from pera_lightning.injection import clean_name

# Lightning has it since 2.6.
_WeightAveraging: Any = getattr(callbacks, "WeightAveraging", ())


class AdapterCopy(nn.Module):
    """Stands for a copy of a module: trainable parameters are its own, everything else is the module's.

    What is shared keeps its bits whatever average is taken with itself, and is neither moved nor saved with the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that it is not registered.
        self._module = (module,)
        trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.names = list(trainable)
        self.values = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in trainable.values())

    def trainable(self) -> list[nn.Parameter]:
        """The module's own parameters, in the order of the copies."""
        parameters = dict(self._module[0].named_parameters())
        return [parameters[name] for name in self.names]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """In the order of the module's."""
        own = dict(zip(self.names, self.values, strict=True))
        for name, parameter in self._module[0].named_parameters():
            yield own.get(name, parameter)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The module's."""
        return self._module[0].buffers()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The copies, under the names that the module's adapter has in checkpoints."""
        return {clean_name(name): value.detach() for name, value in zip(self.names, self.values, strict=True)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy values in; the module's own are left alone."""
        for name, value in zip(self.names, self.values, strict=True):
            value.data.copy_(state_dict[clean_name(name)])


class AveragedAdapter(AveragedModel):
    """torch's average of models, of the trainable parameters only."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        # The buffers are shared, so there are none to average.
        super().__init__(nn.Identity(), use_buffers=False, **options)
        self.module: AdapterCopy = AdapterCopy(module).to(options.get("device"))

    def update_parameters(self, model: nn.Module) -> None:
        """Average the present values in."""
        trainable: Any = SimpleNamespace(parameters=self.module.trainable, buffers=self.module.buffers)
        super().update_parameters(trainable)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Number of averaged models, and the average under `module.`, as torch's."""
        average = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": self.n_averaged, **average}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What `state_dict` gave."""
        self.n_averaged.copy_(state_dict["n_averaged"])
        prefix = "module."
        average = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        self.module.load_state_dict(average)


def average_the_adapter_alone(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Exchange the copies that averaging callbacks made of the module before it had adapters.

    Args:
        trainer: The Trainer with its callbacks, before it restores a checkpoint.
        pl_module: The module with its adapters.

    Raises:
        TrainingError: StochasticWeightAveraging would estimate the statistics of frozen batch norms anew.
    """
    for callback in getattr(trainer, "callbacks", ()):
        # Without a copy the callback is not at work: in validation and tests.
        if isinstance(callback, _WeightAveraging) and callback._average_model is not None:
            options = {**callback._kwargs, "device": callback._device or pl_module.device}
            callback._average_model = AveragedAdapter(pl_module, **options)
        elif isinstance(callback, StochasticWeightAveraging):
            _refuse_frozen_batch_norms(pl_module)
            callback._average_model = AdapterCopy(pl_module)  # type: ignore[assignment]


def _refuse_frozen_batch_norms(pl_module: pl.LightningModule) -> None:
    frozen = [name for name, norm in frozen_norms(pl_module) if isinstance(norm, _BatchNorm)]
    if frozen:
        raise TrainingError(
            "StochasticWeightAveraging would estimate the statistics of frozen batch norms anew; checkpoints would not "
            "hold them.",
            got=f"{len(frozen)} frozen batch norms, e.g. {frozen[0]!r}",
            expected="a base without batch norms, or with those in modules_to_save",
            fix="use EMAWeightAveraging, which leaves them alone, or name them in modules_to_save",
        )
