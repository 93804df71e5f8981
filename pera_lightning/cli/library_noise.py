"""What libraries print that says nothing to whoever uses our command line: quiet there, and only there."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lm_eval.models.huggingface",
    "bitsandbytes.backends.cpu.ops",
)
_LINES = re.compile(
    r"(. )?Tip: |"  # of services and packages that are not needed
    r"(TPU|HPU|IPU) available: False|"
    r"Loading `train_dataloader` to estimate number of stepping batches|"
    # A faster kernel of a package that is not needed.
    r"Failed to load CPU gemm_4bit_forward from kernels-community|"
    # That the model is one, and no name of one.
    r"`pretrained` model kwarg is not of type `str`|Passed an already-initialized model through `pretrained`"
)
_WARNINGS = (
    # About lightning's own use of torch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Of a pretrained model that is quite right: transformers gives it so, and nothing in it behaves differently.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # The next line says which it is.
    r"No seed found, seed set to",
)


def hush_libraries() -> None:
    """Keep quiet what nobody can use. Every other line and warning of the libraries stays."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_says_something)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not sys.stderr.isatty():
        # A bar writes a line into a file for each of its moves: of those that take long one now and then will do.
        os.environ.setdefault("TQDM_DELAY", "5")
        os.environ.setdefault("TQDM_MININTERVAL", "30")


def _says_something(record: logging.LogRecord) -> bool:
    return _LINES.match(record.getMessage()) is None
