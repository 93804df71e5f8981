"""The adapter's contribution with a backward pass by hand.

On CPUs and without kernels (`autograd.py`), and by Triton's (`fused.py`). May import the expansion and the kernels.
Open `autograd.py` first.
"""
