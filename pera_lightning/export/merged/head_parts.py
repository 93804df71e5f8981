"""The head that the class of a model has, and the files of its base may lack or have for another task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pera_lightning.checkpoint import Manifest
from pera_lightning.loading.adapter_base import is_causal_lm, model_class
from pera_lightning.loading.pretrained import PretrainedSource, load_config, while_loading
from pera_lightning.loading.pretrained_classifier import body_of, is_head


@dataclass(frozen=True)
class HeadParts:
    """What sets the class of a model apart from its pretrained body.

    Attributes:
        modules: Names of its outermost modules; what the files hold beside them belongs to other tasks.
        shapes: Name -> shape of the parameters beside the body, and of poolers.
    """

    modules: frozenset[str]
    shapes: dict[str, tuple[int, ...]]


def head_parts(manifest: Manifest, folder: Path) -> HeadParts | None:
    """What the head of an adapter's model consists of, found out without its weights.

    Args:
        manifest: Of the adapter.
        folder: Of the base, with its config.

    Returns:
        None for language models, whose heads are pretrained, bare bodies, and classes that transformers does not know.

    Raises:
        ConfigError: The config is none of such a model.
    """
    cls = model_class(manifest)
    if cls is None or is_causal_lm(cls):
        return None
    source = PretrainedSource(str(folder))
    config = load_config(source)
    if manifest.labels:
        config.num_labels = len(manifest.labels)
    with while_loading(cls.__name__, source), torch.device("meta"):
        model = cls(config)
    body = body_of(model)
    if not body:
        return None
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if is_head(name, body)}
    return HeadParts(frozenset(name for name, _ in model.named_children()), shapes)
