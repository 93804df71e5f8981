"""`PeraEmbedding`: a frozen embedding table with a PERA adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.functional.precision import without_autocast
from pera_lightning.functional.weight import expanded_factors
from pera_lightning.layers.merging import refuse_training_merged
from pera_lightning.layers.pera_linear import PeraLinear


class PeraEmbedding(PeraLinear):
    """`y = table[ids] + scaling * (left @ right[:, ids])^T` with the expanded factors of A, B and h.

    An embedding is a linear layer on one-hot vectors, so that A has a column and the monomials a product per token;
    only those of the tokens at hand are built. The start is `A = 0, h = 0` and a normal B, as LoRA does for embeddings:
    tokens that training never sees keep their rows. Dropout does not act here: its input would be a token.

    Attributes:
        pera_A: Shape (rank, num_embeddings).
        pera_B: Shape (embedding_dim, rank).
        pera_h: Shape (number of monomials,); None at order 1.
    """

    LINEAR = False

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values: B standard normal, A and h zero."""
        self.pera_A.zero_()
        nn.init.normal_(self.pera_B)
        if self.pera_h is not None:
            self.pera_h.zero_()

    @property
    def weight(self) -> Tensor:
        """The effective table (num_embeddings, embedding_dim)."""
        return super().weight.T

    @property
    def num_embeddings(self) -> int:
        """Number of rows of the table."""
        return self.in_features

    @property
    def embedding_dim(self) -> int:
        """Length of a row."""
        return self.out_features

    @property
    def padding_idx(self) -> int | None:
        """The base's padding token."""
        return self.base_layer.padding_idx  # type: ignore[return-value]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Look up tokens.

        Args:
            x: Token ids, any shape.
            *args: Passed to the table.
            **kwargs: Passed to the table.

        Returns:
            Shape (*x.shape, embedding_dim), the table's dtype.

        Raises:
            InjectionError: The adapter is merged and the layer trains: it would get no gradient.
        """
        refuse_training_merged(self, "a merged adapter", self.pera_A)
        rows = self.base_layer(x, *args, **kwargs)
        if self.merged or not self.enabled:
            return rows
        with without_autocast(self.pera_A.device.type):
            tokens = self.pera_A[:, x.reshape(-1)]
            left, right = expanded_factors(
                tokens, self.pera_B, self.coefficients, order=self.config.order, terms=self.config.terms
            )
            change = (right.T @ left.T) * self.scaling
        return rows + change.view(*x.shape, self.out_features).to(rows.dtype)
