"""Loading a tokenizer through transformers, once it was tried."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource, while_loading
from pera_lightning.loading.tokenizer_trial import TokenizerTrial, check_usable, without_panics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(source: PretrainedSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a pad token pads with its end-of-sequence token.

    Raises:
        ConfigError: The source cannot be loaded, or the tokenizer has neither a pad nor an end token.
    """
    source.check()
    tokenizer = read_tokenizer(source)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "The tokenizer has no token to pad with, nor one that ends an answer.",
                got=f"{source.name}: pad_token and eos_token are None",
                expected="at least an eos_token",
                fix="set eos_token in the tokenizer's tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_tokenizer(source: PretrainedSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer as it is stored, of a source that may hold nothing else.

    Raises:
        ConfigError: It cannot be loaded, or takes too long, or cannot be used.
    """
    with while_loading("tokenizer", source), without_panics():
        source.header()
        trial = TokenizerTrial(_tokenizer_files(source))
        from transformers import AutoTokenizer

        trial.check()
        tokenizer = AutoTokenizer.from_pretrained(source.pretrained, **source.options())
        check_usable(tokenizer)
    return tokenizer


def _tokenizer_files(source: PretrainedSource) -> list[Path]:
    """The files that the library of tokenizers reads; a GGUF file holds none, nor do old models."""
    if source.gguf_file is not None:
        return []
    folder = Path(source.pretrained)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        found = cached_file(
            source.pretrained,
            "tokenizer.json",
            revision=source.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is None:
            return []
        folder = Path(found).parent
    # Besides tokenizer.json there may be tokenizer.4.0.json, for versions of transformers from that on.
    found_files = sorted(folder.glob("tokenizer*.json"))
    return [path for path in found_files if path.is_file() and path.name != "tokenizer_config.json"]
