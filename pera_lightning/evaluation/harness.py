"""Models as EleutherAI's lm-evaluation-harness (the lm-eval package) takes them, with all of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pera_lightning.errors import ConfigError, one_line
from pera_lightning.requirements import OLDEST, own_extra, require

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FEATURE = "Evaluation with the tasks of lm-evaluation-harness"


def lm_eval_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int | str = 16, **options: Any
) -> HFLM:
    """Returns a model, adapted, merged or plain, as `lm_eval.simple_evaluate(model=...)` takes it.

    Args:
        model: A causal language model on its device. It is put in eval mode, and stays in it.
        tokenizer: Its tokenizer.
        batch_size: Requests at a time, or "auto".
        **options: Further arguments of `lm_eval.models.huggingface.HFLM`, such as `max_length` or `add_bos_token`.

    Raises:
        ConfigError: lm-eval is not installed, too old, or cannot be imported.
    """
    require(FEATURE, "lm-eval", extra="eval")
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"{FEATURE} needs lm-eval, which cannot be imported.",
            got=one_line(error),
            expected=f"lm-eval {OLDEST['lm-eval']} or newer, with what it needs for models of transformers",
            fix=f"pip install --upgrade {own_extra('eval')}",
        ) from error
    with _weights_as_tied(model):
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **options)


@contextmanager
def _weights_as_tied(model: Any) -> Iterator[None]:
    # HFLM ties the weights again, which fails where an adapter wraps a tied layer; they are tied already.
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
