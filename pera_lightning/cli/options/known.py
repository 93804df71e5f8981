"""Which options the Trainer's commands have, without importing what they configure."""

from __future__ import annotations

from pera_lightning import _HOMES
from pera_lightning.cli.options.signatures import Parameter, parameters

MODELS = ("PeraCausalLM", "PeraSequenceClassifier")
DATA_MODULES = tuple(name for name in _HOMES if name.endswith("DataModule"))
OF_CLASSES = {name: Parameter() for name in ("class_path", "init_args", "dict_kwargs")}
"""What an option that is a class has besides the parameters of the class."""
TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
_NOT_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
OF_COMMAND_LINE = {
    "config": Parameter("str", None, "YAML file with options; may be given several times, later ones count."),
    "print_config": Parameter("", None, "Print all options with their values, and do nothing."),
    "model": Parameter("str", None, "The LightningModule: a class of ours, or class_path: package.module.Class."),
    "data": Parameter("str", None, "The LightningDataModule, likewise."),
    "pera": Parameter("", "None", "null trains no adapter."),
    "trainer": Parameter(),
    "seed_everything": Parameter("bool | int", "True", "Seed of all random numbers; true draws one."),
    "float32_matmul_precision": Parameter(
        "Literal['highest', 'high', 'medium']",
        "'highest'",
        "Inner precision of float32 matrix products (torch.set_float32_matmul_precision): less is faster on GPUs with "
        "tensor cores and CPUs with bf16 instructions, and the same elsewhere.",
    ),
    "compare_base": Parameter(
        "bool",
        "False",
        "In a test: test the base model, without the adapter, on the same data too, print both side by side and write "
        "comparison.csv beside the logs.",
    ),
    "overwrite": Parameter(
        "bool",
        "False",
        "In a test or a prediction: replace comparison.csv or predictions.jsonl although others wrote it.",
    ),
}
"""Beside those of classes: options of LightningCLI, and of `PeraCLI`, which takes their help and defaults from here."""


_OF_METHODS = {
    "ckpt_path": Parameter(
        "str",
        "None",
        'Checkpoint to go on from, or to measure with: a path or URL, or "last" for the newest of the run.',
    ),
    "weights_only": Parameter(
        "bool", "None", "Read checkpoints without making objects of their classes; false only for files that you trust."
    ),
}
"""What the Trainer's methods say of these is for calls in Python."""


def trainer_options(command: str, classes: dict[str, str]) -> dict[str, Parameter]:
    """The options of `fit`, `validate`, `test` or `predict`, without importing anything.

    Args:
        command: Which of them.
        classes: What `model` and `data` were set to, by `short_name`.

    Returns:
        By name, such as "pera.rank". Without `trainer.*` where lightning's source is not found, and without
        those of a `model` or `data` that is no class of ours.
    """
    module, trainer = TRAINER
    of_method = parameters(module, f"{trainer}.{command}")
    taken = {name: _OF_METHODS.get(name, one) for name, one in of_method.items() if name not in _NOT_OPTIONS}
    found = OF_COMMAND_LINE | taken
    found |= _prefixed("trainer", parameters(module, trainer))
    found |= _prefixed("pera", parameters(_HOMES["PeraCallback"], "PeraCallback"))
    for group, name in classes.items():
        if name in (*MODELS, *DATA_MODULES):
            found |= _prefixed(group, parameters(_HOMES[name], name) | OF_CLASSES)
    return found


def short_name(chosen: str) -> str:
    """The name of a class of ours without the module that configs written by `fit` have; others as given."""
    name = chosen.rpartition(".")[2]
    return name if chosen in (f"pera_lightning.{name}", f"{_HOMES.get(name)}.{name}") else chosen


def _prefixed(group: str, options: dict[str, Parameter]) -> dict[str, Parameter]:
    return {f"{group}.{name}": one for name, one in options.items()}
