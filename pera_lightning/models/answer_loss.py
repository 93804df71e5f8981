"""The language-model loss on answers only, with logits only where an answer token is predicted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from pera_lightning.data.examples import IGNORE_INDEX
from pera_lightning.functional.cross_entropy import chunked_cross_entropy
from pera_lightning.layers import TokenRowsLinear
from pera_lightning.loading.narrow_weights import NarrowLinear
from pera_lightning.models.answer_places import COLUMNS, PLACES, with_answer_places

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run the model and compute logits where some row of the batch predicts a labelled token.

    The output head is the largest layer of a small model, and the logits its largest activation; prompts and
    padding need neither.

    Args:
        model: A causal language model.
        batch: `input_ids` and `labels` (B, T), int64; and `attention_mask` (B, T) for padded rows, or
            `position_ids` (B, T) that restart at every sample for packed ones. `labels[:, t]` is the token
            at t, which the logits at t - 1 predict; the first token of a sample is labelled -100. Perhaps what
            `with_answer_places` adds.

    Returns:
        Logits (B, C, vocabulary) at the C kept positions, in the model's dtype, and the labels they predict
        (B, C), -100 where a row predicts none there.

    Raises:
        DataError: No token of the batch is labelled.
    """
    batch = with_answer_places(batch)
    columns = batch[COLUMNS]
    return logits_at(model, _inputs(batch), columns), batch["labels"].index_select(1, columns + 1)


def logits_at(model: PreTrainedModel, inputs: Mapping[str, Any], columns: Tensor) -> Tensor:
    """Run the model and compute logits at some positions only, where it can.

    Args:
        model: A causal language model.
        inputs: Keyword arguments of its forward.
        columns: Indices (C,) of the positions, int64.

    Returns:
        Logits (B, C, vocabulary) in the model's dtype.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=columns).logits
    return model(**inputs).logits[:, columns]


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in float32, averaged over the labelled tokens of the batch.

    Args:
        logits: (B, C, vocabulary), any floating dtype.
        targets: (B, C), int64; -100 takes no part.

    Returns:
        The loss in nats, a float32 scalar.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)


def chunked_answer_loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """`answer_loss(*answer_logits(model, batch))` without ever holding the logits as a whole.

    Args:
        model: A causal language model that `ends_in_frozen_head` accepts.
        batch: See `answer_logits`.

    Returns:
        The loss in nats, a float32 scalar.

    Raises:
        DataError: No token of the batch is labelled.
    """
    batch = with_answer_places(batch)
    places = batch[PLACES]
    hidden = model.base_model(**_inputs(batch)).last_hidden_state.flatten(0, 1)
    return head_loss(model, hidden.index_select(0, places), batch["labels"].flatten().index_select(0, places + 1))


def head_loss(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """`chunked_cross_entropy` of the model's output head, which may have trained token rows."""
    head = model.get_output_embeddings()
    rows = (head.token_rows.tokens, head.token_rows.delta) if isinstance(head, TokenRowsLinear) else None
    plain = _without_rows(head)
    return chunked_cross_entropy(hidden, plain.weight, plain.bias, targets, ignore_index=IGNORE_INDEX, rows=rows)


def _without_rows(head: Any) -> Any:
    return head.base_layer if isinstance(head, TokenRowsLinear) else head


def ends_in_frozen_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its last hidden state times a frozen, plain linear layer, and nothing more.

    The layer may have trained token rows. Models that scale or cap their logits, heads that are adapted, trained,
    sharded or quantised, and models whose own forward must run (compiled, hooked) answer no. Runs the model once on two
    tokens to see.
    """
    head = model.get_output_embeddings()
    return has_frozen_head(model) and _logits_are_the_heads(model, head)


def has_frozen_head(model: PreTrainedModel) -> bool:
    """What `ends_in_frozen_head` looks at before it runs the model; cheap enough for every step."""
    outer = model.get_output_embeddings()
    if isinstance(outer, TokenRowsLinear) and not outer.token_rows.adds:
        # Merged rows must not be trained, which its own forward sees to.
        return False
    head = _without_rows(outer)
    if type(head) not in (nn.Linear, NarrowLinear) or type(head.weight) is not nn.Parameter or head.weight.dim() != 2:
        return False
    if any(parameter.requires_grad for parameter in head.parameters()):
        return False
    if getattr(model, "_compiled_call_impl", None) is not None or isinstance(model, OptimizedModule):
        return False
    return model.base_model is not model and not any(map(_has_hooks, (model, outer, head)))


def _has_hooks(module: nn.Module) -> bool:
    backward = module._backward_hooks or module._backward_pre_hooks
    return bool(module._forward_hooks or module._forward_pre_hooks or backward)


def _logits_are_the_heads(model: PreTrainedModel, head: nn.Module) -> bool:
    device = next(head.parameters()).device
    seen: dict[str, Any] = {}

    def note_state(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["state"] = getattr(output, "last_hidden_state", None)

    def note_logits(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # In place of the true logits some that any cap, scale or shift would show on.
        seen["input"], seen["logits"] = inputs[0], torch.linspace(-100, 100, output.numel()).to(output).view_as(output)
        return seen["logits"]

    hooks = [model.base_model.register_forward_hook(note_state), head.register_forward_hook(note_logits)]
    try:
        # Dropout must not move the random numbers of the run.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            logits = model(input_ids=torch.ones(1, 2, dtype=torch.int64, device=device), use_cache=False).logits
    except Exception:  # a model that two tokens are too little for, or that needs a context of its own
        return False
    finally:
        for hook in hooks:
            hook.remove()
    if seen.get("state") is None or "logits" not in seen:
        return False
    return torch.equal(seen["state"], seen["input"]) and torch.equal(logits, seen["logits"])


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    # Packed samples are told apart by position_ids only where there is no cache.
    names = ("input_ids", "attention_mask", "position_ids")
    return {**{name: batch[name] for name in names if name in batch}, "use_cache": False}
