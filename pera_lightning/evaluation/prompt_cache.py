"""Keys and values of prompts, kept for the several answers that follow each."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """Returns a cache for one pass over prompts."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def rows_of(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Returns rows of a cache, each as often as named; what is added to them leaves the cache as it is.

    Args:
        cache: Of a model that `keeps_prompts`.
        rows: Indices (B,), int64.
    """
    # A layer never changes its tensors in place: it puts longer ones in their stead.
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


@torch.inference_mode()
def keeps_prompts(model: PreTrainedModel, token: int) -> bool:
    """Whether all that a model remembers of a prompt is the keys and values of its tokens. Runs it once on one token.

    Models with a state that every token changes (Mamba, RWKV, hybrids) or with a cache of another kind answer no, as do
    those that keep nothing.

    Args:
        model: A causal language model in eval mode.
        token: Any token id.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    inputs: dict[str, Any] = {"input_ids": torch.tensor([[token]], device=model.device), "use_cache": True}
    try:
        cache = empty_cache(model)
        model(**inputs, past_key_values=cache)
    except Exception:  # a model that knows no such cache, or that one token is too little for
        return False
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return plain and not model._is_stateful and cache.get_seq_length() == 1
