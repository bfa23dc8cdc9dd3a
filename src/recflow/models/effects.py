"""How each event of a history turns the query of a `scoring.ScoringNetwork`: what its scores are taken apart with.

Letters as in `scoring`, and K items of a list.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Effects(NamedTuple):
    """What of B shoppers' events leads to their queries, to the first order."""

    query: Tensor  # (B, D) this and the next three of length 1
    taste: Tensor  # (B, D)
    read: Tensor  # (B, D)
    normed: Tensor  # (B, D)
    gate: Tensor  # (B, 1) the taste's weight in the query
    own: Tensor  # (B, P - 1, D) the events' items as they weigh in the taste
    scale: Tensor  # (B, D) from what the last attention came to, to the query
    heads: Tensor  # (B, P - 1, H * D) how what is read changes without the event
    value: Tensor  # (D, H * D) of what is read

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return those of some shoppers."""
        return self._replace(**{name: part[rows] for name, part in self._asdict().items() if name != "value"})

    def parts(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return what of a query's product with vectors (B, K, D) comes from the events.

        The first part (B, P - 1, K) is what each event adds by turning the query, in the taste and in what the last
        attention reads. The second (B, K) is the taste's own product, which no event alone accounts for.
        """
        turned = _across(vectors, self.query)
        by_taste = _across(turned, self.taste)
        by_read = _across(_across(turned, self.read) * self.scale[:, None], self.normed) @ self.value  # (B, K, H * D)
        parts = torch.baddbmm(self.heads @ by_read.transpose(1, 2), self.own, by_taste.transpose(1, 2))
        return parts, (vectors @ self.taste[..., None])[..., 0] * self.gate


def _across(vectors: Tensor, unit: Tensor) -> Tensor:  # (B, K, D)
    """Take out of vectors what goes along a direction (B, D) of length 1: only the rest turns it."""
    return torch.baddbmm(vectors, vectors @ unit[..., None], unit[:, None], alpha=-1)
