"""Pretrained models and tokenizers through transformers.

From a folder, a hub id or a GGUF file to a model in memory. May import the adapters below it, no data and no
LightningModule. Open `pretrained.py` first.
"""
