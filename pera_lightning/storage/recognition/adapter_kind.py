"""What an adapter folder is recognised by: the names of its files, and the kind that its config says."""

from __future__ import annotations

from pera_lightning.storage.folder_kind import FolderKind

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
PEFT_TYPE = "PERA"
"""In the config, where other adapters have that of theirs."""
_OF_RUNS = (
    *("*.ckpt", "checkpoints", "lightning_logs", "version_*", "events.out.tfevents.*", "hparams.yaml", "metrics.csv"),
    *("config.yaml", "checkpoint-*", "runs", "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt"),
    *("scaler.pt", "rng_state*.pth"),
)
"""What Trainers write, Lightning's and that of transformers: a run that was interrupted goes on in its folder."""
ADAPTER = FolderKind(
    "a PERA adapter",
    marker=CONFIG_FILE,
    recognise=lambda values: values.get("peft_type") == PEFT_TYPE,
    files=(WEIGHTS_FILE, CARD_FILE),
    beside=_OF_RUNS,
)
