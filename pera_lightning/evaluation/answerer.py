"""A language model with its adapter that answers conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from pera_lightning.checkpoint.manifest.manifest import read_manifest
from pera_lightning.data.chat.as_trained import encoder_as_trained
from pera_lightning.data.chat.row_formats import Message
from pera_lightning.errors import ConfigError
from pera_lightning.export import merge_adapter
from pera_lightning.injection import adapter_disabled
from pera_lightning.loading.adapted_model import check_language_model, load_adapted_model
from pera_lightning.models.generation import generate_answers
from pera_lightning.models.token_sampling import GREEDY, Sampling
from pera_lightning.option_checks import count
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import place
from pera_lightning.visible_text import visible_text


class Answerer:
    """Loads the base of an adapter and the adapter; answers come from the GPU if there is one.

    Args:
        adapter: Folder of the adapter.
        base: Hub id or folder of the base model; None is the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        system_prompt: Another system message than that of the training; "" is the chat template's own.
        use_chat_template: Whether to use the tokenizer's chat template; None: as in training.
        max_new_tokens: Longest answer, in tokens.
        without_adapter: Load the base alone.
        merged: Merge the adapter into the base, which makes an answer cost what the base's costs.
        dtype: Dtype of the base's weights.
        sampling: How the tokens of an answer are chosen.

    Raises:
        AdapterFileError: The folder is missing or damaged, or does not fit the base.
        ConfigError: The options do not go together, or the base cannot be loaded.
    """

    def __init__(
        self,
        adapter: str,
        *,
        base: str | None,
        gguf_file: str | None,
        system_prompt: str | None,
        use_chat_template: bool | None,
        max_new_tokens: int,
        without_adapter: bool,
        merged: bool,
        dtype: str,
        sampling: Sampling = GREEDY,
    ) -> None:
        if merged and without_adapter:
            raise ConfigError(
                "Without its adapter there is nothing to merge.",
                got="merged and without_adapter",
                expected="one of them",
                fix="leave one out",
            )
        self.sampling = sampling
        self.max_new_tokens = count("max_new_tokens", max_new_tokens, least=1)
        check_language_model(adapter)
        model, self.tokenizer = load_adapted_model(
            adapter, base=base, gguf_file=gguf_file, dtype=dtype, without_adapter=without_adapter
        )
        model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        self.model: Any = merge_adapter(model) if merged else model
        self._encoder = encoder_as_trained(
            self.tokenizer,
            read_manifest(place(adapter) / CONFIG_FILE).chat,
            max_length=1_000_000,
            system_prompt=system_prompt,
            use_chat_template=use_chat_template,
        )

    def answer(self, messages: Sequence[Message], *, stream: bool = False) -> str:
        """The assistant's next message.

        Args:
            messages: The conversation so far.
            stream: Print the answer word by word as it comes.
        """
        options = {"skip_prompt": True, "skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        streamer = _screen()(self.tokenizer, **options) if stream else None
        ids = torch.tensor(self._encoder.encode_prompt(messages))
        [answer] = generate_answers(
            self.model, self.tokenizer, [ids], self.max_new_tokens, streamer, sampling=self.sampling
        )
        return answer

    def base_answer(self, messages: Sequence[Message]) -> str:
        """What the base says without the adapter, which must not be merged."""
        with adapter_disabled(self.model):
            return self.answer(messages)


def _screen() -> type[Any]:
    """Prints an answer, and what would steer the terminal in it as escapes."""
    from transformers import TextStreamer

    class Screen(TextStreamer):
        @override
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(visible_text(text), stream_end)

    return Screen
