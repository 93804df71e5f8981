"""That a run's losses, gradients, weights and checkpoints are finite, without making a GPU wait.

Open `finite_run.py` first.
"""
