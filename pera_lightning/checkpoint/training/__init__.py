"""Adapters out of the checkpoints of a Trainer, read without running anything in them.

Open `training_checkpoint.py` first.
"""
