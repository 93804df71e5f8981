"""Which token pads the texts of a merged classifier."""

from __future__ import annotations

import json
from pathlib import Path

from pera_lightning.errors import ConfigError
from pera_lightning.export.merged.base_files import MODEL_CONFIG_FILE
from pera_lightning.export.merged.merged_certificate import check_tokenizer
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import read_tokenizer


def pad_as_trained(folder: Path, source: PretrainedSource) -> None:
    """Have a merged classifier pad as `PeraSequenceClassifier` does: decoders find the last token of a text by that.

    The tokenizer pads with its end token where it has nothing else to pad with, and the config names the token. Without
    a tokenizer all stays as it is.

    Args:
        folder: Of the merged model.
        source: The base, with its tokenizer.
    """
    try:
        check_tokenizer(source)
        tokenizer = read_tokenizer(source)
    except ConfigError:
        return
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(folder)
    if tokenizer.pad_token_id is not None:
        path = folder / MODEL_CONFIG_FILE
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(
            json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}, indent=2) + "\n", encoding="utf-8"
        )
