"""`chat`: a conversation with an adapted model."""

from __future__ import annotations

from typing import Literal

from pera_lightning.cli.screen import ask, tell


def chat(
    adapter: str,
    base: str | None = None,
    gguf_file: str | None = None,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    without_adapter: bool = False,
    merged: bool = False,
    dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "auto",
) -> None:
    """Talk to a causal language model with a PERA adapter: a line is a message, an empty line or Ctrl-D ends.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        system_prompt: Another system message than that of the training; "" is the chat template's own.
        use_chat_template: Whether to use the tokenizer's chat template; by default as in training.
        max_new_tokens: Longest answer, in tokens.
        temperature: Draw each token by chance; below 1 likely ones become likelier. By default, and at 0, the likeliest
            is taken.
        top_p: Draw among the likeliest tokens that together have this probability.
        top_k: Draw among so many of the likeliest tokens.
        seed: Of the draw: the same one gives the same answer.
        without_adapter: Talk to the base model.
        merged: Merge the adapter into the base first: answers then cost what the base's cost. A base in 4 bits becomes
            a floating one by that.
        dtype: Dtype of the base's weights; that of the training (`model.init_args.dtype`) is the best choice.
    """
    from pera_lightning.evaluation.answerer import Answerer
    from pera_lightning.models.token_sampling import Sampling

    answerer = Answerer(
        adapter,
        base=base,
        gguf_file=gguf_file,
        system_prompt=system_prompt,
        use_chat_template=use_chat_template,
        max_new_tokens=max_new_tokens,
        without_adapter=without_adapter,
        merged=merged,
        dtype=dtype,
        sampling=Sampling(temperature, top_p, top_k, seed),
    )
    tell("An empty line or Ctrl-D ends the conversation.")
    messages: list[dict[str, str]] = []
    while text := ask():
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": answerer.answer(messages, stream=True)})
