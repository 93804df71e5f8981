"""The adapter in the weights of its base.

In memory (`merge.py`), or as files that transformers loads (`merged_model.py`). May import the plain LoRA. Open
`merge.py` first.
"""
