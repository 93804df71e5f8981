"""The models that the compatibility table is about, each with what is to come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig
from pera_lightning.errors import InjectionError, PeraError, TargetError
from tests.support.torch_models import (
    WIDTH,
    Attention,
    Recurrent,
    Shared,
    Translator,
    convolutional,
    encoder,
    weight_normed,
)
from tests.support.transformers_models import VOCABULARY, transformers_model

CHECKS = ("inject", "train", "save/load", "merge", "compile", "4-bit")


@dataclass(frozen=True)
class Refusal:
    """An error that is meant: its type and words of its message."""

    error: type[PeraError]
    words: str


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: What the row is called.
        make: Builds the model; `build` seeds it.
        call: Runs the model on inputs that are always the same; returns one tensor that all layers take part in.
        target_modules: What to adapt.
        refusals: Check -> the error that it is to end with. A refused injection leaves the other checks out.
        note: What a user should know, a footnote of the row.
    """

    name: str
    make: Callable[[], nn.Module]
    call: Callable[[nn.Module], Tensor]
    target_modules: str | Sequence[str] = "all-linear"
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    note: str = ""

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that this row has tests for."""
        return CHECKS[:1] if "inject" in self.refusals else CHECKS

    @property
    def config(self) -> PeraConfig:
        """The adapter of this row."""
        return PeraConfig(3, 2, coefficient_scale="auto", target_modules=self.target_modules)

    def build(self) -> nn.Module:
        """The model in eval mode, the same weights every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().eval()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator())


def _ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 6), generator=_generator())


def _on(*shape: int) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(_numbers(*shape))


def _tokens(model: nn.Module) -> Tensor:
    # A padded row, as in real batches.
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return model(input_ids=_ids(), attention_mask=mask).logits


def _sequences(model: nn.Module) -> Tensor:
    return model(input_ids=_ids(), decoder_input_ids=_ids()[:, :5]).logits


def _image(model: nn.Module) -> Tensor:
    return model(pixel_values=_numbers(2, 3, 16, 16)).logits


def _sound(model: nn.Module) -> Tensor:
    return model(input_features=_numbers(2, 16, 20), decoder_input_ids=_ids()).logits


def _image_and_text(model: nn.Module) -> Tensor:
    return model(input_ids=_ids(), pixel_values=_numbers(2, 3, 16, 16)).logits_per_image


def _of(name: str, **options: object) -> Callable[[], nn.Module]:
    return partial(transformers_model, name, **options)


NO_LINEAR = {"inject": Refusal(TargetError, "no linear layer")}
COMPUTED = {"inject": Refusal(TargetError, "remove_parametrizations")}
TIED = {"merge": Refusal(InjectionError, "tied to another module")}
READ_BY_TORCH = {"4-bit": Refusal(TargetError, "no linear layer to quantise")}
EXPERTS = "The experts are 3-D parameters and stay frozen; target_modules reaches the linear layers beside them."

ZOO = (
    Entry(
        "nn.MultiheadAttention",
        Attention,
        _on(2, 5, 16),
        note="The input projections are one parameter, no linear layers, and stay frozen; `out_proj` is adapted. "
        "In 4 bits `out_proj` stays floating: torch reads its weight itself.",
    ),
    Entry(
        "nn.TransformerEncoder",
        encoder,
        _on(2, 5, WIDTH),
        refusals=READ_BY_TORCH,
        note="Also in its inference path, which reads the weights instead of calling the layers.",
    ),
    Entry("nn.Transformer", Translator, _on(2, 5, WIDTH), note="In 4 bits: the feed-forward layers of the decoder."),
    Entry("nn.LSTM between linear layers", Recurrent, _on(2, 5, 16)),
    Entry("nn.LSTM named as a target", Recurrent, _on(2, 5, 16), ["lstm"], NO_LINEAR),
    Entry("CNN with linear layers", convolutional, _on(2, 3, 16, 16)),
    Entry("nn.Conv2d named as a target", convolutional, _on(2, 3, 16, 16), ["0"], NO_LINEAR),
    Entry("One layer used twice", Shared, _on(2, 5, 16), note="It gets one adapter."),
    Entry("Weight-normed linear layer", weight_normed, _on(2, 5, 16), refusals=COMPUTED),
    Entry("GPT-2", _of("GPT2LMHeadModel"), _tokens, note="Its linear layers are Conv1D of transformers."),
    Entry("BERT", _of("BertForSequenceClassification"), _tokens),
    Entry("RoBERTa", _of("RobertaForSequenceClassification"), _tokens),
    Entry("T5", _of("T5ForConditionalGeneration"), _sequences),
    Entry("ViT", _of("ViTForImageClassification"), _image),
    Entry("Whisper", _of("WhisperForConditionalGeneration"), _sound),
    Entry("CLIP", _of("CLIPModel"), _image_and_text),
    Entry("Mamba", _of("MambaForCausalLM"), _tokens),
    Entry("Llama", _of("LlamaForCausalLM"), _tokens),
    Entry("Llama, the embedding adapted too", _of("LlamaForCausalLM"), _tokens, ["embed_tokens", "q_proj"]),
    Entry("Llama with tied embeddings", _of("LlamaForCausalLM", tie_word_embeddings=True), _tokens),
    Entry(
        "Llama with tied embeddings, the head adapted",
        _of("LlamaForCausalLM", tie_word_embeddings=True),
        _tokens,
        ["q_proj", "lm_head"],
        TIED,
    ),
    Entry("Mixtral", _of("MixtralForCausalLM"), _tokens, note=EXPERTS),
    Entry("Mixtral, experts named as targets", _of("MixtralForCausalLM"), _tokens, ["experts"], NO_LINEAR),
    Entry("Qwen2-MoE", _of("Qwen2MoeForCausalLM"), _tokens, note=EXPERTS),
    Entry("Qwen3-MoE", _of("Qwen3MoeForCausalLM"), _tokens, note=EXPERTS),
)
