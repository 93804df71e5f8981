"""`PeraCausalLM`: fine-tuning a pretrained causal language model on instructions with Lightning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import rich
import torch
from torch import Tensor
from typing_extensions import override

from pera_lightning.base_layers import QUANTIZATIONS, Quantization, check_quantization, set_compute_dtype
from pera_lightning.data.examples import IGNORE_INDEX
from pera_lightning.data.rescaled_positions import RowsInCompany
from pera_lightning.injection import describe_bytes
from pera_lightning.loading.pretrained import (
    compute_dtype,
    load_causal_lm,
)
from pera_lightning.models.answer_loss import (
    answer_logits,
    answer_loss,
    chunked_answer_loss,
    ends_in_frozen_head,
    has_frozen_head,
)
from pera_lightning.models.answer_metrics import AnswerMetrics
from pera_lightning.models.answer_places import PLACES, with_answer_places
from pera_lightning.models.generation import (
    GenerationSample,
    generate_answers,
    generate_samples,
    sample_table,
    split_prompts,
)
from pera_lightning.models.pack_check import check_packs
from pera_lightning.models.parallel.parallel_causal_lm import ParallelBuild
from pera_lightning.models.pretrained_module import PretrainedModule
from pera_lightning.option_checks import check_flags, count, one_of
from pera_lightning.run_log.messages import rank_zero_info

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PeraCausalLM(PretrainedModule):
    """A pretrained causal language model that learns to give the answers of instruction data, or plain text.

    With `PeraCallback` only the adapters (and `modules_to_save`) are trained, without it every parameter that is
    not frozen. An optimizer step weighs all its answer tokens alike, however they are batched, accumulated and spread
    over processes. Logged: `train_loss`, their mean, at every step; in validation and test `val_loss`,
    `val_perplexity`, `val_token_accuracy` (per answer token, each predicted from the true tokens before it; of plain
    text every token is one) and, where answers are generated, `val_exact_match`; likewise `test_...`. Prediction
    returns the generated answers as a list of strings.

    Args:
        pretrained: Hub id or local folder of a causal language model.
        learning_rate: Peak learning rate of AdamW, for the factors A and everything trained whole.
        gguf_file: Name of a GGUF file in that repository or folder; its weights are dequantised on loading.
        quantization: Store the linear layers but the output head in 4 bits ("nf4", "nf4-dq" with quantised scales,
            "fp4") or 8 ("int8"), by bitsandbytes; everything else keeps `dtype`, the factors are float32.
        generate_in_validation: Generate the answers in validation too, for the exact match and printed samples.
        generate_in_test: The same in the test.
        max_new_tokens: Longest generated answer, in tokens.
        printed_samples: Number of generated answers printed after a validation or test with generation.
        **options: What every `PretrainedModule` has: revision, dtype, attn_implementation, trust_remote_code,
            gradient_checkpointing, activation_offloading, optimizer, b_lr_factor, h_lr_factor, weight_decay,
            warmup_ratio, warmup_steps, schedule.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        learning_rate: float = 2e-4,
        gguf_file: str | None = None,
        quantization: Quantization | None = None,
        generate_in_validation: bool = False,
        generate_in_test: bool = False,
        max_new_tokens: int = 64,
        printed_samples: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, learning_rate=learning_rate, **options)
        self.source = replace(self.source, gguf_file=gguf_file)
        self.quantization = one_of("quantization", quantization, (None, *QUANTIZATIONS))
        if self.quantization is not None:
            check_quantization(self.quantization)
        check_flags(generate_in_validation=generate_in_validation, generate_in_test=generate_in_test)
        self.generate_in_validation = generate_in_validation
        self.generate_in_test = generate_in_test
        self.max_new_tokens = count("max_new_tokens", max_new_tokens, least=1)
        self.printed_samples = count("printed_samples", printed_samples, least=0)
        # Under ModelParallelStrategy, until the model is sharded.
        self._parallel: ParallelBuild | None = None
        self.val_metrics = AnswerMetrics()
        self.test_metrics = AnswerMetrics()
        self._samples: list[GenerationSample] = []
        # Found out when a fit starts: whether the loss can do without the whole logits.
        self._chunks_loss = False
        self._packs_checked = False
        self._rows_in_company = RowsInCompany()

    @override
    def setup(self, stage: str) -> None:
        """Refuse what cannot be, before anything is loaded."""
        super().setup(stage)
        self._packs_checked = False

    @override
    def configure_model(self) -> None:
        """Load the pretrained model; once, though Lightning calls this for every fit, validate, test and predict.

        Under `ModelParallelStrategy` it is built on the meta device, and gets its weights when it is sharded.
        """
        if self.model is None:
            if self.device_mesh is None:
                self.model = self._load()
            else:
                self._parallel = ParallelBuild(self._load, self.source, self.device_mesh, self.quantization)
                self.model = self._parallel.model
            self.spare_memory(self.model)
        set_compute_dtype(self.model, self._compute_dtype(self.model.dtype))
        if self._parallel is not None and not _sharded_later(self.trainer):
            self.shard_model()

    def shard_model(self) -> None:
        """Shard the model over the processes of a `ModelParallelStrategy`; PeraCallback calls it after injecting."""
        if self._parallel is not None:
            self._parallel.finish(self.trainer.strategy.root_device)
            self._parallel = None

    def _load(self) -> PreTrainedModel:
        model = load_causal_lm(
            self.source,
            dtype=self.dtype_name,
            attn_implementation=self.attn_implementation,
            quantization=self.quantization,
        )
        if self.quantization is not None:
            rank_zero_info(f"{self.quantization}: the base's weights take {describe_bytes(model)}")
        return model

    def _compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of products in 4-bit layers, which autocast does not reach."""
        chosen = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16}
        precision = "" if self._trainer is None else str(self._trainer.precision)
        return compute_dtype(chosen.get(precision, dtype))

    def float_model(self) -> PreTrainedModel:
        """The model before quantisation, loaded anew: what a LoftQ start (`pera.init`) approximates."""
        return load_causal_lm(self.source, dtype=self.dtype_name, attn_implementation=self.attn_implementation)

    @override
    def on_fit_start(self) -> None:
        """Put the model in train mode, and say so when it is trained without an adapter."""
        with self.trainer.precision_plugin.forward_context():
            self._chunks_loss = ends_in_frozen_head(self.built_model())
        super().on_fit_start()

    @override
    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Find the answers of a training batch while it is on the CPU, so that no step has to ask a GPU."""
        # Not the public hook, of which Lightning warns wherever there is a data module.
        batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        self._rows_in_company.check(self.built_model(), batch)
        return with_answer_places(batch) if self.trainer.training else batch

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        model, batch = self.built_model(), with_answer_places(batch)
        self._check_packs(batch)
        # Somebody may unfreeze or hook the head in the middle of a run.
        chunks = self._chunks_loss and has_frozen_head(model)
        loss = chunked_answer_loss(model, batch) if chunks else answer_loss(*answer_logits(model, batch))
        return self.accumulation.weigh(loss, len(batch[PLACES]))

    @override
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("val", self.val_metrics, batch, generate=self.generate_in_validation)

    @override
    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("test", self.test_metrics, batch, generate=self.generate_in_test)

    @override
    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[str]:
        prompts, _ = split_prompts(batch)
        return generate_answers(self.built_model(), self.tokenizer, prompts, self.max_new_tokens)

    @override
    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    @override
    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    @override
    def on_validation_epoch_end(self) -> None:
        self._print_samples("Validation")

    @override
    def on_test_epoch_end(self) -> None:
        self._print_samples("Test")

    def _evaluate(self, stage: str, metrics: AnswerMetrics, batch: dict[str, Tensor], *, generate: bool) -> None:
        self._check_packs(batch)
        logits, targets = answer_logits(self.built_model(), batch)
        labelled = targets != IGNORE_INDEX
        # One row of the labelled positions alone: a softmax over the vocabulary is what the metrics cost.
        logits, targets = logits[labelled].unsqueeze(0), targets[labelled].unsqueeze(0)
        # Weighted by tokens, the epoch's loss is the mean over all its answer tokens, however they are batched and
        # spread over processes; of numbers that it is given, Lightning rounds the mean batch size down.
        metrics.loss.update(answer_loss(logits, targets), targets.numel())
        self.log(f"{stage}_loss", metrics.loss, prog_bar=True)
        metrics.perplexity.update(logits.float(), targets)
        metrics.token_accuracy.update((logits.argmax(dim=-1) == targets).float())
        self.log(f"{stage}_perplexity", metrics.perplexity)
        self.log(f"{stage}_token_accuracy", metrics.token_accuracy)
        if generate:
            samples = generate_samples(self.built_model(), self.tokenizer, batch, self.max_new_tokens)
            # Not the module's device, which FSDPStrategy leaves at what it was.
            matches = [float(sample.matches) for sample in samples]
            metrics.exact_match.update(torch.tensor(matches, device=batch["input_ids"].device))
            self.log(f"{stage}_exact_match", metrics.exact_match, prog_bar=True)
            self._samples += samples[: max(0, self.printed_samples - len(self._samples))]

    def _check_packs(self, batch: dict[str, Tensor]) -> None:
        """Ask the model before it first computes on rows that stand end to end, once in every run."""
        # Here and not when the run starts: sharded models run as parts of a step only.
        if "position_ids" in batch and not self._packs_checked:
            check_packs(self.built_model(), batch["input_ids"].device)
            self._packs_checked = True

    def _print_samples(self, stage_name: str) -> None:
        samples, self._samples = self._samples, []
        if samples and self.trainer.is_global_zero:
            # The console that RichProgressBar draws on, so that the table does not tear the bar.
            title = f"{stage_name} samples at step {self.trainer.global_step}"
            rich.get_console().print(sample_table(samples, title))


def _sharded_later(trainer: Any) -> bool:
    """Whether a callback, such as PeraCallback, calls `shard_model` when the adapters are in the model."""
    return any(getattr(callback, "shards_after_injecting", False) for callback in trainer.callbacks)
