"""The adapter folder that a fit leaves behind: of the best checkpoint, or of the last step.

Open `trained_adapter.py` first; `best_checkpoint.py` says which step it is.
"""
