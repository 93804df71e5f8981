"""Every type of model that transformers registers, tiny: what the sweep of the compatibility page runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.model_settings import SETTINGS, TOO_LARGE
from tests.support.tiny_configs import VOCABULARY, tiny_config

Inputs = dict[str, Tensor]
MEL_FIRST = "whisper qwen2_audio audioflamingo3 voxtral glmasr musicflamingo".split()
"""Types that take sound as (features, time); others take (time, features)."""


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _tokens(model: Any) -> Inputs:
    ids = torch.randint(4, VOCABULARY - 4, (2, 6), generator=_generator())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image(model: Any) -> Inputs:
    config = model.config
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 64)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.randn(2, 3, height, width, generator=_generator())}


def _image_and_text(model: Any) -> Inputs:
    return {**_tokens(model), **_image(model)}


def _sound(model: Any) -> Inputs:
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 1600, generator=_generator())}
    shape = (2, 16, 20) if model.config.model_type in MEL_FIRST else (2, 20, 16)
    return {"input_features": torch.randn(*shape, generator=_generator())}


def _main(model: Any) -> Inputs:
    given = _tokens(model) if model.main_input_name == "input_ids" else _sound(model)
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = _tokens(model)["input_ids"][:, :5]
    return given


@dataclass(frozen=True)
class Kind:
    """Types of models that are called alike.

    Attributes:
        name: Heading on the page.
        mappings: Of transformers' auto classes, whose types these are; a type is of the first kind that has it.
        inputs: What a model is called with.
        packs: Whether `PeraCausalLM` trains it, so that rows may be packed.
    """

    name: str
    mappings: tuple[str, ...]
    inputs: Callable[[Any], Inputs]
    packs: bool = False


KINDS = (
    Kind("Causal language models", ("CAUSAL_LM",), _tokens, packs=True),
    Kind("Encoders with decoders, speech", ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"), _main),
    Kind("Text encoders", ("SEQUENCE_CLASSIFICATION", "MASKED_LM"), _tokens),
    Kind("Sound encoders", ("CTC", "AUDIO_CLASSIFICATION"), _sound),
    Kind("Image encoders", ("IMAGE_CLASSIFICATION",), _image),
    Kind("Encoders of images and text", ("ZERO_SHOT_IMAGE_CLASSIFICATION",), _image_and_text),
    Kind("Language models with images, called with text", ("IMAGE_TEXT_TO_TEXT",), _tokens),
)


@dataclass(frozen=True)
class ModelType:
    """One type of models.

    Attributes:
        name: As in `config.model_type`.
        kind: What it is.
        class_name: The class of transformers that is tried.
    """

    name: str
    kind: Kind
    class_name: str

    def build(self) -> Any:
        """The tiny model in eval mode, the same weights every time."""
        import transformers

        kind = getattr(transformers, self.class_name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(tiny_config(kind.config_class, SETTINGS.get(self.name))).eval()
            _leave_no_zeros(model)
            return model

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """What a model is called with, always the same."""
        given: dict[str, Any] = self.kind.inputs(model)
        # Caches of several kinds of layers are no part of what is tried.
        cache = "input_ids" in given and not model.config.is_encoder_decoder  # type: ignore[union-attr]
        return {**given, "use_cache": False} if cache else given

    def call(self, model: nn.Module) -> Tensor:
        """Run a model on its arguments; returns its logits, or what comes nearest to them."""
        return first_output(model(**self.arguments(model)))


@torch.no_grad()
def _leave_no_zeros(model: nn.Module) -> None:
    """Move what starts at zero (gates, last layers), so that every layer takes part as in a trained model."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.any() and not name.endswith("bias"):
            parameter.normal_(std=0.2)


def first_output(output: Any) -> Tensor:
    """The logits of a model's output; where there are none, the first tensor."""
    found = next((output[name] for name in ("logits", "logits_per_image") if name in output), None)
    found = next(iter(output.values())) if found is None else found
    return found[0] if isinstance(found, tuple) else found


def model_types(*kinds: str) -> list[ModelType]:
    """The types that the installed transformers registers, of the kinds of these names or of all."""
    return [entry for entry in _all_types() if not kinds or entry.kind.name in kinds]


def _all_types() -> Iterator[ModelType]:
    from transformers.models.auto import modeling_auto

    seen: set[str] = set(TOO_LARGE)
    for kind in KINDS:
        for mapping in kind.mappings:
            for name, classes in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
                if name not in seen:
                    seen.add(name)
                    yield ModelType(name, kind, classes if isinstance(classes, str) else classes[0])
