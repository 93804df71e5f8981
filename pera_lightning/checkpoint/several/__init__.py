"""Several adapters on one base: switched, mixed, compared.

Open `adapter_set.py` first.
"""
