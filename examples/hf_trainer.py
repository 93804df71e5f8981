"""PERA with the Trainer of Hugging Face transformers, with checkpoints that hold the adapter alone.

    pip install accelerate          # the Trainer needs it; the extras gguf and quant bring it
    python examples/hf_trainer.py   # with the model and the data of plain_pytorch.py
    python examples/hf_trainer.py --resume runs/hf_trainer/checkpoint-15

The first prints the Trainer's log, and at its end the test loss of the base and with the adapter.
An injected model trains in the Trainer as it is, but the Trainer's own checkpoints of it hold the whole base, under the
names of the wrapped layers: large, and `from_pretrained` finds no weights in them for the adapted layers, draws new
ones and only logs that. `AdapterTrainer` writes an adapter folder instead, which `load_adapter` reads.
Limits: tested in one process; FSDP and DeepSpeed, under which the Trainer saves in other ways, are refused. A base of
`from_pretrained(quantization_config=...)` is refused by the Trainer, which sees no adapter of PEFT: load the floating
model and call `quantize_model(model, "nf4")` of pera_lightning before injecting.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from spoken_requests import read_requests
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from pera_lightning import PeraConfig, adapter_disabled, inject_adapter, load_adapter, parameter_groups, save_adapter


class AdapterTrainer(Trainer):
    """A Trainer that saves, resumes and brings back the best by `save_adapter` and `load_adapter`.

    The optimizer, the scheduler, the random generators and the Trainer's state are saved as ever.
    `_load_from_checkpoint` and `_load_best_model` are no public names of transformers: tested with 5.23.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotImplementedError("AdapterTrainer does not save under FSDP or DeepSpeed.")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; the Trainer calls this for each checkpoint."""
        if self.args.should_save:  # one process of several
            save_adapter(self.model, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_adapter(model or self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_adapter(self.model, self.state.best_model_checkpoint)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="PERA with transformers.Trainer.", formatter_class=with_defaults)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder or hub id of a causal LM")
    parser.add_argument("--data", type=Path, default=Path("data/tool_calls"), help="folder of generate.py")
    parser.add_argument("--out", type=Path, default=Path("runs/hf_trainer"), help="folder for checkpoints and adapter")
    parser.add_argument("--steps", type=int, default=30, help="training steps; a checkpoint after each half")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--resume", help="checkpoint folder to go on from")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; the adapter stays in float32")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    return parser.parse_args(arguments)


def training_arguments(options: argparse.Namespace) -> TrainingArguments:
    """The Trainer's own options: nothing in them is particular to PERA."""
    return TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        logging_steps=5,
        save_steps=max(1, options.steps // 2),
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 2),
        load_best_model_at_end=True,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),  # bf16 on a CPU asks for it
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )


def main(arguments: list[str] | None = None) -> Trainer:
    """Train, compare with the base, save; returns the Trainer."""
    options = parse_arguments(arguments)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    print(inject_adapter(model, PeraConfig(rank=4)))  # before the Trainer sees the model
    if options.gradient_checkpointing:
        # The newer name where there is one. Reentrant checkpointing would also need model.enable_input_require_grads().
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    optimizer = torch.optim.AdamW(parameter_groups(model.named_parameters(), learning_rate=options.learning_rate))
    trainer = AdapterTrainer(
        model=model,
        args=training_arguments(options),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=read_requests(options.data / "train.jsonl", tokenizer, options.steps * options.batch_size),
        eval_dataset=read_requests(options.data / "val.jsonl", tokenizer, 20),  # chooses the best checkpoint
        optimizers=(optimizer, None),  # the Trainer makes the schedule
    )
    trainer.train(resume_from_checkpoint=options.resume)
    test_rows = read_requests(options.data / "test.jsonl", tokenizer, 20)
    adapted_loss = trainer.evaluate(test_rows, metric_key_prefix="test")["test_loss"]
    with adapter_disabled(model):
        base_loss = trainer.evaluate(test_rows, metric_key_prefix="base")["base_loss"]
    print(f"test loss: base {base_loss:.3f}, with the adapter {adapted_loss:.3f}")
    print(f"adapter saved to {save_adapter(model, options.out / 'adapter')}")
    return trainer


if __name__ == "__main__":
    main()
