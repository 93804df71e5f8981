"""`fit`, `validate`, `test` and `predict`: LightningCLI with `PeraCallback` built in.

May import everything. Open `trainer.py` first.
"""
