"""The adapted layers.

May import base layers and the mathematics. Open `pera_linear.py` first.
"""

from pera_lightning.layers.adapted import adapted_layer, stored_weight
from pera_lightning.layers.pera_embedding import PeraEmbedding
from pera_lightning.layers.pera_linear import PeraLinear
from pera_lightning.layers.scaled_factors import scaled_factors
from pera_lightning.layers.token_rows import TokenRows, TokenRowsEmbedding, TokenRowsLayer, TokenRowsLinear

__all__ = [
    "PeraEmbedding",
    "PeraLinear",
    "TokenRows",
    "TokenRowsEmbedding",
    "TokenRowsLayer",
    "TokenRowsLinear",
    "adapted_layer",
    "scaled_factors",
    "stored_weight",
]
