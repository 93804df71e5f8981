"""Adapters under Lightning's strategies: what each refuses, shards, loads and saves.

Open `strategy.py` first, which says what a strategy is asked; `choice.py` says which file answers for which.
"""
