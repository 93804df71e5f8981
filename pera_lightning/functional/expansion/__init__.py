"""Which products of rank components there are, and how factors are expanded with them.

Pure functions of tensors. Open `monomials.py` first: it lists the products of a family (of `pera_lightning.families`);
`expansion.py` and `fold.py` compute with them.
"""
