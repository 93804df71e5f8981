"""A causal language model over several GPUs: sharded (FSDP2) and split (tensor parallelism).

Of other wings' files it may import those of loading alone. Open `parallel_causal_lm.py` first; `strategy_kind.py` says
which of Lightning's strategies shard.
"""
