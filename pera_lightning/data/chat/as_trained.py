"""Conversations as text in the way of an adapter's training, which the adapter's folder tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pera_lightning.data.chat.prompts import ALPACA_TEMPLATE, ChatEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder_as_trained(
    tokenizer: PreTrainedTokenizerBase,
    trained: Mapping[str, Any],
    *,
    max_length: int,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
) -> ChatEncoder:
    """The encoder of a training, but for what is said otherwise.

    Args:
        tokenizer: A tokenizer of transformers.
        trained: `Manifest.chat` of the adapter; empty where it was trained on something else than conversations, or
            before this was kept.
        max_length: Most tokens of an example.
        system_prompt: Another system message; "" is the template's own. None: that of the training.
        use_chat_template: Whether to use the tokenizer's chat template; None: as in training.
    """
    known = trained.get("system_prompt") if system_prompt is None else system_prompt
    fixed = ALPACA_TEMPLATE if use_chat_template is None and trained.get("template") == "alpaca" else None
    chosen = trained.get("use_chat_template", True) if use_chat_template is None else use_chat_template
    return ChatEncoder(
        tokenizer, max_length=max_length, use_chat_template=chosen, system_prompt=known or None, template=fixed
    )
