"""Which options the Trainer's commands have, without importing what they configure."""

from __future__ import annotations

from pera_lightning import _HOMES
from pera_lightning.cli.options.signatures import parameters

MODELS = ("PeraCausalLM", "PeraSequenceClassifier")
DATA_MODULES = tuple(name for name in _HOMES if name.endswith("DataModule"))
OF_CLASSES = {"class_path": "", "init_args": "", "dict_kwargs": ""}
"""What an option that is a class has besides the parameters of the class."""
_TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
_NOT_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
_OF_COMMAND_LINE = {
    "config": "",
    "seed_everything": "bool | int",
    "trainer": "",
    "pera": "",
    "model": "",
    "data": "",
    "float32_matmul_precision": "str",
    "compare_base": "bool",
    "overwrite": "bool",
}


def trainer_options(command: str, classes: dict[str, str]) -> dict[str, str]:
    """The options of `fit`, `validate`, `test` or `predict`, with their annotations.

    Args:
        command: Which of them.
        classes: What `model` and `data` were set to.

    Returns:
        Name, such as "pera.rank" -> annotation. Without `trainer.*` where lightning's source is not found, and without
        those of a `model` or `data` that is no class of ours.
    """
    module, trainer = _TRAINER
    of_method = parameters(module, f"{trainer}.{command}")
    found = _OF_COMMAND_LINE | {name: text for name, text in of_method.items() if name not in _NOT_OPTIONS}
    found |= _prefixed("trainer", parameters(module, trainer))
    found |= _prefixed("pera", parameters("pera_lightning.callback.callback", "PeraCallback"))
    for group, chosen in classes.items():
        name = chosen.removeprefix("pera_lightning.")
        if name in (*MODELS, *DATA_MODULES):
            found |= _prefixed(group, parameters(_HOMES[name], name) | OF_CLASSES)
    return found


def _prefixed(group: str, options: dict[str, str]) -> dict[str, str]:
    return {f"{group}.{name}": text for name, text in options.items()}
