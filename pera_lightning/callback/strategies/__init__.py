"""Adapters under Lightning's strategies: what each refuses, shards, loads and saves.

Open the file of the strategy.
"""
