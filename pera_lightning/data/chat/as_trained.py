"""Conversations as text in the way of an adapter's training, which the adapter's folder tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pera_lightning.data.chat.prompts import ALPACA_TEMPLATE, ChatEncoder
from pera_lightning.data.reading.parsed_row import shorten
from pera_lightning.run_log.messages import rank_zero_info

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
    known = system_prompt_as_trained(trained, system_prompt)
    fixed = ALPACA_TEMPLATE if use_chat_template is None and trained.get("template") == "alpaca" else None
    chosen = trained.get("use_chat_template", True) if use_chat_template is None else use_chat_template
    return ChatEncoder(tokenizer, max_length=max_length, use_chat_template=chosen, system_prompt=known, template=fixed)


def system_prompt_as_trained(trained: Mapping[str, Any], given: str | None) -> str | None:
    """The system message of a training, but for what is said otherwise; None is the chat template's own.

    A line of the log says where the training had several, of which no one stands for all.

    Args:
        trained: `Manifest.chat` of the adapter.
        given: Another one; "" is the template's own. None: that of the training.
    """
    if given is not None:
        return given or None
    own: str | None = trained.get("system_prompt")
    if different := trained.get("different_system_prompts"):
        most = trained.get("most_frequent_system_prompt")
        taken = "the chat template's own" if own is None else repr(shorten(own))
        example = "" if most is None or most == own else f"; the most frequent one is {shorten(most, 400)!r}"
        rank_zero_info(
            f"PERA: the training rows had {different:,} different system messages; {taken} is taken. Another one: "
            f"--system_prompt{example}"
        )
    return own
