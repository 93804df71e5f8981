"""A floating model in 4 or 8 bits, in place, and the LoftQ start over it.

Open `quantize_model.py` first.
"""
