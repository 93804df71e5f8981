"""The mathematics of PERA as pure functions of tensors.

May import configs and errors, and torch. Open `linear.py` first; `expansion/` has the products, `fused/` the backward
pass by hand, `kernels/` what runs on GPUs.
"""

from pera_lightning.functional.expansion.expansion import expand
from pera_lightning.functional.expansion.monomials import expanded_rank, monomials
from pera_lightning.functional.linear import PATHS, pera_linear
from pera_lightning.functional.weight import delta_weight

__all__ = ["PATHS", "delta_weight", "expand", "expanded_rank", "monomials", "pera_linear"]
