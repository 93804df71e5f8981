"""Accumulated gradients weighed by what their batches hold, for any LightningModule.

Needs nothing else of this package but the log. Open `weighted_accumulation.py` first.
"""
