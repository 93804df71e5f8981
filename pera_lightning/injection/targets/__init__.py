"""From a config and a model to the exact list of layers, before anything is changed.

Open `plan.py` first.
"""
