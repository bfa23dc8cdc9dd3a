"""Embeddings of items, smoothed over who took what: LightGCN (He et al., SIGIR 2020) without weights of users.

    S = D^-1/2 R' C^-1 R D^-1/2        from item to user to item: two of LightGCN's layers
    e = mean of S^0 e0, S^1 e0, ..., S^n e0

R is 1 where a user took an item, C the items of each user, D the users of each item. LightGCN's users have embeddings
of their own and can't be new; here a user is what its items are, which leaves items alone to be learned.

Letters: U users, V items, D numbers of an embedding.
"""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.histories import Histories


class Propagation(nn.Module):
    """Items' embeddings (V, D) -> the mean of them and of what each step over the graph makes of them (V, D)."""

    def __init__(self, histories: Histories, *, steps: int) -> None:
        """Take the graph.

        Args:
            histories: who took what; how often and in which order doesn't matter.
            steps: from items to users and back.
        """
        super().__init__()
        half = _half(histories)  # S is its transpose times itself
        self.steps, self.to_users, self.to_items = steps, _Product(half), _Product(half.T.tocsr())

    def forward(self, embeddings: Tensor) -> Tensor:  # (V, D) -> (V, D)
        """Propagate."""
        total = embeddings
        for _ in range(self.steps):
            embeddings = _Step.apply(embeddings, self.to_users, self.to_items)  # type: ignore[no-untyped-call]
            total = total + embeddings
        return total / (self.steps + 1)


class _Product(nn.Module):
    """Multiply by a sparse matrix that isn't learned: rows of the other factor, weighted and summed."""

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def __init__(self, matrix: sparse.csr_array) -> None:
        super().__init__()
        self.register_buffer("columns", torch.from_numpy(matrix.indices.astype(np.int64)), persistent=False)
        self.register_buffer("starts", torch.from_numpy(matrix.indptr[:-1].astype(np.int64)), persistent=False)
        self.register_buffer("weights", torch.from_numpy(matrix.data), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = F.embedding_bag(self.columns, values, self.starts, mode="sum", per_sample_weights=self.weights)
        return found


class _Step(torch.autograd.Function):
    """Multiply by S, which is symmetric: gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, to_users: _Product, to_items: _Product) -> Tensor:
        ctx.graph = (to_users, to_items)
        found: Tensor = to_items(to_users(embeddings))
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        to_users, to_items = ctx.graph
        return to_items(to_users(outer[0].contiguous())), None, None


def _half(histories: Histories) -> sparse.csr_array:  # (U, V) C^-1/2 R D^-1/2
    shape = (len(histories), histories.n_items)
    parts = (np.ones(len(histories.items), np.float32), histories.items, histories.offsets)
    took = sparse.csr_array(parts, shape=shape, copy=True)  # which is put in order below, as histories mustn't be
    took.sum_duplicates()
    took.data[:] = 1  # an item taken twice is a neighbour once
    of_users, of_items = (np.maximum(took.sum(axis=axis), 1) ** -0.5 for axis in (1, 0))
    return (sparse.diags_array(of_users) @ took @ sparse.diags_array(of_items)).tocsr().astype(np.float32)
