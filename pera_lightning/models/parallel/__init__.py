"""A causal language model over several GPUs: sharded (FSDP2) and split (tensor parallelism).

May import loading alone. Open `parallel_causal_lm.py` first.
"""
