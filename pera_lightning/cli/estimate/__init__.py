"""`estimate`: the GPU memory of a fit, before anything is loaded.

May import everything. Open `command.py` first.
"""
