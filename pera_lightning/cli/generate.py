"""`generate`: answer one prompt with an adapter."""

from __future__ import annotations

from typing import Literal

from pera_lightning.cli.screen import show_table
from pera_lightning.errors import ConfigError


def generate(
    adapter: str,
    prompt: str,
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
    compare: bool = False,
    dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "auto",
) -> None:
    """Print the answer of a causal language model with a PERA adapter as it comes.

    The prompt goes through the tokenizer's chat template as in training with InstructionDataModule, and the base is
    quantised as it was there.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        prompt: What the user says.
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
        without_adapter: Let the base model answer.
        merged: Merge the adapter into the base first.
        compare: Let both answer, and print the answers side by side.
        dtype: Dtype of the base's weights; that of the training (`model.init_args.dtype`) is the best choice.
    """
    from pera_lightning.evaluation.answerer import Answerer
    from pera_lightning.models.token_sampling import Sampling

    if compare and (merged or without_adapter):
        raise ConfigError(
            "Base and adapted model cannot be compared.",
            got=f"--compare true with --{'merged' if merged else 'without_adapter'} true",
            expected="an adapter beside its base",
            fix="leave one out",
        )
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
    messages = [{"role": "user", "content": prompt}]
    if compare:
        _show(answerer.base_answer(messages), answerer.answer(messages))
    else:
        answerer.answer(messages, stream=True)


def _show(base: str, adapted: str) -> None:
    from pera_lightning.plain_table import Lines, PlainTable

    table = PlainTable("base", "with the adapter")
    table.add_row(Lines(base), Lines(adapted))
    show_table(table)
